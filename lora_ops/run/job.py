"""What there is to do: jobs, each with its cost, how they are done, and what becomes of one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..report import LayerReport, Skip
from .devices import Placement

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, eq=False)
class Job(Generic[Item]):
    """One item of the work: what can be done by itself, in any order, in any process.

    Attributes:
        name: What progress and messages call it: a target, or a key of a file.
        item: What `Work.compute` is given for it. It can be pickled.
        cost: What it takes, against the others; for weights, how many numbers it has.
        need: Bytes on the device while it is worked on.
        alike: Jobs of which this is equal may be computed in one batch.
        shape: Of the weight, for people.
    """

    name: str
    item: Item
    cost: int = 1
    need: int = 1
    alike: Hashable = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Work(Generic[Item, Result]):
    """All that an operation does to weights: the jobs, and how a batch of them is computed.

    Both can be pickled, sources with them: another process opens their files again.

    Attributes:
        jobs: In the order in which their results are wanted.
        compute: Given the items of a batch and where to compute; returns a result for each item, in
            their order. It is called from several threads at once.
    """

    jobs: Sequence[Job[Item]]
    compute: Callable[[Sequence[Item], Placement], Sequence[Result]]

    @property
    def cost(self) -> int:
        """Of all jobs together."""
        return sum(job.cost for job in self.jobs)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome(Generic[Value]):
    """What became of one weight, or of one tensor that holds several.

    Attributes:
        name: A target; or the key of the tensor.
        value: What is to be written; None where it is left out.
        reports: What is to be said of it: one entry a weight.
    """

    name: str
    value: Value | None
    reports: tuple[LayerReport | Skip, ...] = ()

    @property
    def report(self) -> LayerReport | Skip:
        """What is to be said of the one weight that this is of."""
        (report,) = self.reports
        return report
