"""Several extractions from one base, weight by weight: it is read and decoded once for all of them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from graphlib import TopologicalSorter
from typing import TypeAlias, TypeVar

from torch import Tensor

from ...errors import LoraOpsError
from ...models.architectures import Parameter
from ...models.differences import Sides, read_parameter
from ...models.pairing import Pair
from ...run.devices import Placement
from ...run.job import Job, Work
from ...source import TensorSource
from .plan import Plan
from .task import Task

Result = TypeVar("Result")
# A weight of several tuned checkpoints: the number of each, and what is to become of it.
Tasks: TypeAlias = tuple[tuple[int, Task], ...]


class Held(threading.local):
    """Weights of the base that a thread has read, for as long as it works on them."""

    def __init__(self) -> None:
        self._weights: dict[str, Tensor] = {}

    def __reduce__(self) -> tuple[type[Held], tuple[()]]:
        """Another process begins with none."""
        return Held, ()

    def read(self, base: TensorSource, parameter: Parameter) -> Tensor:
        """Return a weight, read if it is not held."""
        if parameter.name not in self._weights:
            self._weights[parameter.name] = read_parameter(base, parameter)
        return self._weights[parameter.name]

    @contextmanager
    def frame(self) -> Generator[None, None, None]:
        """Let go, at the end, of what was read."""
        try:
            yield
        finally:
            self._weights.clear()


@dataclass(frozen=True, slots=True)
class SharedSides(Sides):
    """Two checkpoints, of which the base is that of others too.

    Attributes:
        held: What is read of it.
    """

    held: Held

    def read_base(self, pair: Pair) -> Tensor:
        """Read one parameter from the base, as stored, if no other did."""
        return self.held.read(self.base, pair.base)


def shared(plans: Sequence[Plan]) -> tuple[list[Plan], Held]:
    """Return plans that read their common base together, and what holds its weights meanwhile."""
    held = Held()
    return [
        replace(plan, sides=SharedSides(plan.sides.base, plan.sides.tuned, held)) for plan in plans
    ], held


def together(
    works: Sequence[Work[Task, Result]], held: Held
) -> Work[Tasks, list[tuple[int, Result | LoraOpsError]]]:
    """Return several works as one, whose jobs are all that is to be done with one weight of the base.

    Each work's results come in its own order. An error ends the work that it is of: it is the last
    result of that, and the others go on.

    Args:
        works: Of plans that share a base, which has one order for all of them.
        held: From `shared`.
    """
    known: dict[str, list[tuple[int, Job[Task]]]] = {}
    order = TopologicalSorter[str]()
    for number, work in enumerate(works):
        before: list[str] = []
        for job in work.jobs:
            known.setdefault(job.name, []).append((number, job))
            order.add(job.name, *before)
            before = [job.name]
    jobs = [_joined(known[name]) for name in order.static_order()]
    return Work(jobs, partial(_compute, works, held, set[int]()))


def _joined(jobs: Sequence[tuple[int, Job[Task]]]) -> Job[Tasks]:
    return Job(
        jobs[0][1].name,
        tuple((number, job.item) for number, job in jobs),
        sum(job.cost for _, job in jobs),
        max(job.need for _, job in jobs),
        # In a batch are the same as in that of each work alone.
        tuple((number, job.alike) for number, job in jobs),
    )


def _compute(
    works: Sequence[Work[Task, Result]],
    held: Held,
    failed: set[int],
    items: Sequence[Tasks],
    placement: Placement,
) -> list[list[tuple[int, Result | LoraOpsError]]]:
    found: list[list[tuple[int, Result | LoraOpsError]]] = [[] for _ in items]
    with held.frame():
        for place, (number, _) in enumerate(items[0]):
            if number in failed:
                continue
            tasks = [item[place][1] for item in items]
            try:
                made = works[number].compute(tasks, placement)
            except LoraOpsError as error:
                failed.add(number)
                found[0].append((number, error))
                continue
            for results, result in zip(found, made, strict=True):
                results.append((number, result))
    return found
