"""What the extraction of a Control-LoRA does to parameters: matrices as factors, biases and norms whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from ...adapters.layers import Layer
from ...models.pairing import Pair
from ...run.devices import Placement
from ...run.job import Job, Outcome, Work
from ..extract.extract import Task, extraction_work
from ..extract.layer import replaced
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
    if whole:  # alone, for they are alike to nothing else; some programs ask also for those that did not change
        return [
            replace(replaced(planned.plan, both, always=True), name=both.name) for both in whole
        ]
    return factors.compute(cast("Sequence[Task]", items), placement)
