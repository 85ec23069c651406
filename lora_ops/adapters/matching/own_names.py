"""What an adapter of PEFT calls the weights of a checkpoint: names that only the loaded model has."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ...errors import MismatchError
from ...files import FileSource, model_config
from ...models.architectures import detect
from ...models.modules import Modules, check_axes, expert_of, modules_of
from ...models.parameter import Parameter
from ...source import TensorSource
from ..formats import PEFT, resolve


def own_names(
    modules: Collection[str], checkpoint: TensorSource, known: Mapping[str, Parameter]
) -> Modules | None:
    """Return a checkpoint's parameters as the loaded model has them, where modules are not found otherwise.

    Args:
        modules: Names as they stand in an adapter.
        checkpoint: Of one model, opened with its configuration where it has one.
        known: Its parameters by canonical name. Models with tables of names need no others.

    Raises:
        ArgumentError: Experts are asked for, and it is not known how their stacks lie.
    """
    of_peft = [one for one in modules if one.startswith(PEFT.prefixes)]
    if not of_peft or detect(known) is not None:
        return None
    found = resolve(modules, [one.target for one in known.values()])
    lost = [one for one in of_peft if one not in found]
    if not lost:
        return None
    config = model_config(checkpoint.name) if isinstance(checkpoint, FileSource) else {}
    try:
        own = modules_of(checkpoint, config)
    except MismatchError:  # several models, or a part of one: what is lost is said elsewhere
        return None
    # A head may be in one of the two alone; if most are strange, it is another program's naming.
    found = resolve(lost, [one.target for one in own.parameters.values()])
    if 2 * len(found) <= len(lost):
        return None
    if any(expert_of(one) for one in lost):
        check_axes(own, config, checkpoint.name)
    return own


def with_own_names(
    modules: Collection[str], checkpoint: TensorSource, known: Mapping[str, Parameter]
) -> Mapping[str, Parameter]:
    """Return the parameters of a checkpoint by target, and by the names of the loaded model where these are needed.

    Args:
        modules: Names as they stand in an adapter.
        checkpoint: The checkpoint.
        known: Its parameters by canonical name.

    Raises:
        ArgumentError: As `own_names`.
    """
    own = own_names(modules, checkpoint, known)
    others = () if own is None else own.parameters.values()
    return {one.target: one for one in (*others, *known.values())}
