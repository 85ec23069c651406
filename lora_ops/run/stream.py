"""The one loop: every operation's jobs go through here, in order, few of them in memory.

Where more is to come, it comes in here, and no operation knows of it, for none goes through its own
jobs; `Work` is all there is to it:

- A part of the work is a `Work` with some of the jobs, by their cost.
- A journal stands between a job and its result: `stream` hands out what it has under the job's name,
  and notes what is made.
- Another engine takes the place of `ordered_map`: it makes results elsewhere, from batches of items
  and `compute`, both pickled, and gives them back in order.

What has to be known of all jobs before the first result can be made, such as the spectra of a
budget, is a `Work` of its own, which goes through here too.
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
