"""Running independent jobs side by side, with results in order and few of them in memory."""

from __future__ import annotations

from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar, cast

import torch

# Called with what is done, what there is in all, and the name of what was finished.
Progress = Callable[[int, int, str], None]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pending(Generic[Result]):
    """A call that another thread makes, and its result.

    With bare threads and simple queues in place of `threading` and `concurrent.futures`: there a
    Ctrl-C that comes while the main thread holds one of their locks leaves it taken, and whoever
    waits for it waits for ever. A simple queue has no lock that an exception can leave behind.
    """

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._done: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()
        self.is_cancelled = False

    def run(self) -> None:
        """Make the call, in the thread that this is called in; nothing if it is cancelled."""
        if self.is_cancelled:
            return
        try:
            self._done.put((self._call(), None))
        except BaseException as error:  # noqa: BLE001  it is raised where the result is wanted
            self._done.put((None, error))

    def result(self) -> Result:
        """Wait for the result, once, or raise what the call raised."""
        value, error = self._done.get()
        if error is not None:
            raise error
        return cast("Result", value)


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

    An exception in a job, or closing the iterator, cancels what has not begun and waits for the rest.
    """
    cores = torch.get_num_threads()
    tasks: SimpleQueue[Pending[Result] | None] = SimpleQueue()

    ended: SimpleQueue[None] = SimpleQueue()
    started = 0

    def work() -> None:
        torch.set_num_threads(max(1, cores // workers))
        while (task := tasks.get()) is not None:
            task.run()
        ended.put(None)

    pending: deque[Pending[Result]] = deque()
    try:
        for _ in range(workers):
            start_new_thread(work, ())
            started += 1
        for item in items:
            task = Pending(partial(function, item))
            pending.append(task)
            tasks.put(task)
            if len(pending) >= workers + spare:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for task in pending:
            task.is_cancelled = True
        for _ in range(workers):
            tasks.put(None)
        for _ in range(started):
            ended.get()
        torch.set_num_threads(cores)


def in_background(call: Callable[[], Result]) -> tuple[Callable[[], Result], Callable[[], None]]:
    """Begin a call in a thread of its own.

    Returns:
        What waits for its result, once; and what waits for its end, once.
    """
    task = Pending(call)
    ended: SimpleQueue[None] = SimpleQueue()

    def work() -> None:
        task.run()
        ended.put(None)

    start_new_thread(work, ())
    return task.result, ended.get


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
