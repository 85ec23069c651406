"""The one loop: every operation's jobs go through here, in order, few of them in memory.

Where more is to come, it comes in here, and no operation knows of it: a part of the work is some of
its jobs; a journal hands out results that it has, and notes those that are made; another engine
makes them elsewhere, from the jobs and `compute`, pickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TypeVar

from .devices import Placement, place
from .job import Job, Work
from .workers import Progress, ordered_map

Item = TypeVar("Item")
Result = TypeVar("Result")


def stream(
    work: Work[Item, Result],
    placement: Placement | None = None,
    *,
    ahead: int = 1,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Yield the result of every job, in the order of the work; where jobs are batched, batch by batch.

    An exception in a job, or closing the iterator, cancels what has not begun and waits for the rest.

    Args:
        work: What there is to do.
        placement: Where to compute, how many batches side by side; None: the CPU.
        ahead: Batches that may be done before their results are taken, beside those at work.
        progress: Called before each result is yielded, with the cost of what is done, of all, and
            the job's name.

    Raises:
        ArgumentError: The memory does not hold even one of the jobs.
    """
    placement = placement or place("cpu")
    batches = placement.batches(work.jobs)

    def computed(batch: Sequence[Job[Item]]) -> Sequence[Result]:
        with placement.scope():
            return work.compute([job.item for job in batch], placement)

    total, done = work.cost, 0
    with closing(ordered_map(computed, batches, placement.workers, spare=ahead)) as results:
        for batch, made in zip(batches, results, strict=True):
            for job, result in zip(batch, made, strict=True):
                done += job.cost
                if progress is not None:
                    progress(done, total, job.name)
                yield result
