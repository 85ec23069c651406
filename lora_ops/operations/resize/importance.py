"""How much a layer's change matters: against the size of the weight that it changes.

The idea is elias-gaeros' (resize_lora): a change of one size is much to a small weight and little to
a large one, so a budget should compare shares.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from ...adapters.checkpoint import check_checkpoint
from ...adapters.formats import model_names
from ...adapters.matching.own_names import with_own_names
from ...adapters.matching.seats import seats
from ...errors import NonFiniteError, TargetMismatchError
from ...linalg import NORMS, check_norm, inverse_norm
from ...models.architectures import Parameter, detect, parameters
from ...models.differences import read_parameter
from ...models.pairing import nearest
from ...run.devices import Placement
from ...run.job import Job, Work
from ...run.stream import stream
from ...source import TensorSource

__all__ = ["NORMS", "importance", "importance_work", "weighed"]


def importance(
    modules: Collection[str], checkpoint: TensorSource, norm: str = "spectral"
) -> dict[str, float]:
    """Return one over the norm of the weight that each module changes, read one at a time.

    Args:
        modules: Module names of an adapter, of any naming.
        checkpoint: The model that it is for.
        norm: `spectral` or `frobenius`.

    Returns:
        By module; 1.0 for a weight of zeros, and for what is no matrix.

    Raises:
        ArgumentError: No such norm.
        TargetMismatchError: The checkpoint lacks a weight that is changed.
        MismatchError: The checkpoint is an adapter.
        QuantisedError: Its numbers are stored with scales.
        NonFiniteError: A weight holds NaN or infinity.
    """
    return weighed(importance_work(modules, checkpoint, norm))


def weighed(work: Work[str, float]) -> dict[str, float]:
    """Do the jobs of `importance_work`, and return the results by module."""
    return dict(zip((job.name for job in work.jobs), stream(work), strict=True))


def importance_work(
    modules: Collection[str], checkpoint: TensorSource, norm: str = "spectral"
) -> Work[str, float]:
    """Return the jobs of `importance`, and how they are done, once it is sure that they can be.

    Args:
        modules: See `importance`.
        checkpoint: The same.
        norm: The same.

    Raises:
        LoraOpsError: As `importance`, but for what the weights themselves may cause.
    """
    check_norm(norm)
    check_checkpoint(checkpoint)
    named = parameters(checkpoint)
    known = with_own_names(modules, checkpoint, named)
    found = seats(modules, known, lambda: model_names(detect(named), list(known)))
    lost = [module for module in modules if module not in found]
    if lost:
        raise TargetMismatchError(
            f"{checkpoint.name} lacks {len(lost)} of {len(modules)} weights that are changed, the "
            f"first `{lost[0]}`, nearest: {nearest(lost[0], known)}; give the model that the LoRA "
            "is for"
        )
    jobs = [Job(module, module, alike=module) for module in modules]
    own = {module: seat.own for module, seat in found.items()}
    return Work(jobs, partial(_compute, checkpoint, own, norm))


def _compute(
    checkpoint: TensorSource,
    own: Mapping[str, Parameter],
    norm: str,
    modules: Sequence[str],
    _: Placement,
) -> list[float]:
    return [_weigh(checkpoint, module, own[module], norm) for module in modules]


def _weigh(checkpoint: TensorSource, module: str, parameter: Parameter, norm: str) -> float:
    if len(parameter.shape) < 2:
        return 1.0
    weight = read_parameter(checkpoint, parameter).float().flatten(1)
    if not bool(weight.isfinite().all()):
        raise NonFiniteError(
            f"`{parameter.key}` holds NaN or infinite values; the file is damaged: use another",
            target=module,
            path=checkpoint.name,
        )
    return inverse_norm(weight, norm)
