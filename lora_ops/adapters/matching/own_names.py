"""What an adapter of PEFT calls the weights of a checkpoint: names that only the loaded model has."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ...errors import MismatchError
from ...files import FileSource, model_config
from ...models.modules import Modules, check_axes, expert_of, modules_of
from ...models.parameter import Parameter
from ...source import TensorSource
from ..formats import PEFT, resolve


def own_names(
    modules: Collection[str], checkpoint: TensorSource, targets: Collection[str]
) -> Modules | None:
    """Return a checkpoint's parameters as the loaded model has them, where modules are not found otherwise.

    Args:
        modules: Names as they stand in an adapter.
        checkpoint: Of one model, opened with its configuration where it has one.
        targets: Its canonical targets.

    Raises:
        ArgumentError: Experts are asked for, and it is not known how their stacks lie.
    """
    known = resolve(modules, targets)
    lost = [one for one in modules if one not in known and one.startswith(PEFT.prefixes)]
    if not lost:
        return None
    config = model_config(checkpoint.name) if isinstance(checkpoint, FileSource) else {}
    try:
        found = modules_of(checkpoint, config)
    except MismatchError:  # several models, or a part of one: what is lost is said elsewhere
        return None
    if any(expert_of(one) for one in lost):
        check_axes(found, config, checkpoint.name)
    return found


def with_own_names(
    modules: Collection[str], checkpoint: TensorSource, targets: Mapping[str, Parameter]
) -> Mapping[str, Parameter]:
    """Return the targets of a checkpoint, and those by the names of the loaded model where these are needed.

    Args:
        modules: Names as they stand in an adapter.
        checkpoint: The checkpoint.
        targets: Its parameters by canonical target.

    Raises:
        ArgumentError: As `own_names`.
    """
    found = own_names(modules, checkpoint, targets)
    if found is None:
        return targets
    return {**{one.target: one for one in found.parameters.values()}, **targets}
