"""What the extraction of a Control-LoRA does to parameters: matrices as factors, biases and norms whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor

from ...adapters.layers import Layer, ReplacementLayer
from ...linalg import frobenius
from ...linalg.storage import rounded
from ...models.differences import difference, measured
from ...models.pairing import Pair
from ...report import LayerReport
from ...run.devices import Placement
from ...run.job import Job, Outcome, Work
from ..extract.extract import Task, extraction_work
from .plan import ControlPlan


def control_work(
    planned: ControlPlan, *, exact: bool = False, seed: int = 0
) -> Work[Any, Outcome[Layer]]:
    """Return the jobs of the extraction of a Control-LoRA, and how they are done.

    Args:
        planned: From `plan_control_file`.
        exact: Compute the exact truncation.
        seed: Seed of the random start.
    """
    factors = extraction_work(planned.plan, exact=exact, seed=seed)
    whole = [Job(both.name, both, math.prod(both.shape), alike=both.name) for both in planned.whole]
    jobs: list[Job[Any]] = [*factors.jobs, *whole]
    return Work(jobs, partial(_compute, planned, factors))


def _compute(
    planned: ControlPlan,
    factors: Work[Task, Outcome[Layer]],
    items: Sequence[Task | Pair],
    placement: Placement,
) -> Sequence[Outcome[Layer]]:
    whole = [one for one in items if isinstance(one, Pair)]
    if whole:  # alone, for they are alike to nothing else
        return [_whole(planned, both) for both in whole]
    return factors.compute(cast("Sequence[Task]", items), placement)


def _whole(planned: ControlPlan, both: Pair) -> Outcome[Layer]:
    """A parameter as the ControlNet has it, also where it is the base's: some programs ask for it."""
    base, tuned = planned.plan.sides.read(both)
    _, norm = measured(planned.plan.sides, both, base, tuned)
    layer = ReplacementLayer(rounded(tuned, planned.plan.dtype, both.name))
    residual = float(frobenius(_flat(difference(layer.set_weight, tuned))))
    about = (both.name, both.component, both.kind, both.shape)
    return Outcome(both.name, layer, (LayerReport(*about, layer.rank, norm, residual),))


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(1, -1)
