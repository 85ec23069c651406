"""Running independent jobs side by side, with results in order and few of them in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

# Called with what is done, what there is in all, and the name of what was finished.
Progress = Callable[[int, int, str], None]

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, *, spare: int = 1
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, at most `workers` + `spare` results ahead.

    Each job computes on its own share of the cores. Many small factorisations gain little from
    threads inside them, and on a busy machine the waiting of those threads for each other costs
    far more than they bring; jobs side by side have neither problem, and one reads its tensors
    while another computes.

    Where the caller works as long on a result as a job takes, and sizes differ, more of them in
    memory keep both busy.

    An exception in a job, or closing the iterator, cancels what has not begun.
    """
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        workers, initializer=torch.set_num_threads, initargs=(max(1, cores // workers),)
    )
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= workers + spare:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(cores)


class _Named(Protocol):
    @property
    def target(self) -> str: ...


Named = TypeVar("Named", bound=_Named)


def counted_off(results: Iterable[Named], total: int, progress: Progress | None) -> Iterator[Named]:
    """Yield each result, and say before it how many there were."""
    for done, result in enumerate(results, start=1):
        if progress is not None:
            progress(done, total, result.target)
        yield result
