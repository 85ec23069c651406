"""Running independent jobs side by side, with results in order and few of them in memory."""

from __future__ import annotations

import atexit
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

import torch

from .scratch import SCRATCH

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


class _Workers(Generic[Result]):
    """Threads that make calls in the order in which they are given."""

    def __init__(self, count: int, cores: int) -> None:
        self._tasks: SimpleQueue[Pending[Result] | None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._pending: deque[Pending[Result]] = deque()
        self._running = 0
        _STARTED.add(self)
        for _ in range(count):
            start_new_thread(self._work, (cores,))
            self._running += 1

    def __len__(self) -> int:
        return len(self._pending)

    def give(self, call: Callable[[], Result]) -> None:
        """Have a call made."""
        task = Pending(call)
        self._pending.append(task)
        self._tasks.put(task)

    def take(self) -> Result:
        """Wait for the result of the earliest call that was not taken."""
        return self._pending.popleft().result()

    def stop(self) -> None:
        """Cancel what has not begun, and wait for the rest; nothing the second time."""
        for task in self._pending:
            task.is_cancelled = True
        running, self._running = self._running, 0
        for _ in range(running):
            self._tasks.put(None)
        for _ in range(running):
            self._ended.get()
        _STARTED.discard(self)

    def _work(self, cores: int) -> None:
        torch.set_num_threads(cores)
        while (task := self._tasks.get()) is not None:
            task.run()
        SCRATCH.free()  # freed as the thread ends, it would end the process if that ends meanwhile
        self._ended.put(None)


_STARTED: set[_Workers[Any]] = set()


@atexit.register
def _stop_all() -> None:
    """Let no thread outlive the interpreter: after an error, iterators may be there to the end."""
    for workers in list(_STARTED):
        workers.stop()


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, *, spare: int = 1
) -> Generator[Result, None, None]:
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
    threads = _Workers[Result](workers, max(1, cores // workers))
    try:
        for item in items:
            threads.give(partial(function, item))
            if len(threads) >= workers + spare:
                yield threads.take()
        while len(threads):
            yield threads.take()
    finally:
        threads.stop()
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
