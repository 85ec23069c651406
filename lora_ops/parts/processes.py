"""The engine of several devices of one machine: a process for each, which makes one part after another.

A process lives as long as its standard input is open: whatever ends this one, a kill too, ends it. What it
says on its standard error goes where ours does. One that dies is replaced.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import subprocess
import sys
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import IO, cast

import torch

from ..errors import ArgumentError
from ..run.devices import Placement, place
from .engine import ATTEMPTS, Make, Share, Tell, pickled

#: The package as this process has it, whatever it is called here and however it came in.
ROOT = __name__.removesuffix(".lora_ops.parts.processes")
_INIT = Path(__file__).resolve().parents[2] / "__init__.py"
# Seconds in which a process ends that has stopped to speak.
_AT_MOST = 5
# Ctrl-C is ours to answer. Modules are looked for where this process looks, not in the current folder. The
# work is taken before torch is imported, so that all processes start at once.
_BEGIN = f"""
import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)
import sys; sys.path[:] = sys.argv[1:]
import importlib.util as util, pickle
work = pickle.load(sys.stdin.buffer)
spec = util.spec_from_file_location({ROOT!r}, {str(_INIT)!r})
sys.modules[spec.name] = util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
from importlib import import_module
import_module({ROOT!r} + ".lora_ops.parts.process").serve(work)
"""


@dataclass(frozen=True, slots=True)
class Hands:
    """Where a process computes, and on how much of the machine.

    Attributes:
        device: As `place` takes it.
        memory: Cap in bytes on what is used there; see `place`.
        workers: Jobs side by side, on the CPU.
        threads: Of torch, for all of them.
    """

    device: str
    memory: int | None
    workers: int
    threads: int

    def placement(self) -> Placement:
        """Settle down there: for this process alone.

        Raises:
            ArgumentError: No such device here.
        """
        torch.set_num_threads(self.threads)
        found = place(self.device, memory=self.memory)
        return replace(found, workers=self.workers) if found.device.type == "cpu" else found


@dataclass(frozen=True, slots=True)
class Processes:
    """Makes parts in processes of this machine, one for each device.

    On the CPU, jobs get as many threads as they do without processes, as that decides how sums are rounded.

    Attributes:
        devices: As `place` takes them; one that is named twice gets two processes.
        memory: Cap in bytes on what a process uses of its device; None: see `place`.

    Raises:
        ArgumentError: There are none; no such device here; or the cap is not positive.
    """

    devices: Sequence[str]
    memory: int | None = None

    def __post_init__(self) -> None:
        if not self.devices:
            raise ArgumentError("no devices; name one or more")
        for name in self.devices:
            _found(name, self.memory)

    def __call__(self, shares: Sequence[Share], make: Make, tell: Tell) -> None:
        """Make all of them; see `Engine`."""
        work = pickled(make)
        waiting = deque(shares)
        says: SimpleQueue[tuple[_Process, object]] = SimpleQueue()
        lost: dict[Share, int] = {}
        living: set[_Process] = set()

        def begin(hands: Hands) -> None:
            if waiting:
                process = _Process(hands, work, says)
                living.add(process)
                process.give(waiting.popleft())

        try:
            for hands in self._hands()[: len(shares)]:
                begin(hands)
            while any(process.share for process in living):
                process, said = says.get()
                share = process.share
                if share is None:  # it died with nothing to do
                    continue
                if isinstance(said, tuple):
                    tell(share, *cast("tuple[int, str]", said))
                elif isinstance(said, BaseException):
                    raise said
                elif said is True:
                    process.give(waiting.popleft() if waiting else None)
                else:
                    living.remove(process)
                    how = process.end(within=_AT_MOST)
                    lost[share] = lost.get(share, 0) + 1
                    if lost[share] == ATTEMPTS:
                        raise share.given_up(f"the process that made it {how}")
                    waiting.appendleft(share)
                    tell(share, 0, "")
                    begin(process.hands)
        finally:
            for process in living:
                process.end()

    def _hands(self) -> list[Hands]:
        """What each process gets of the machine."""
        cores, count, alone = torch.get_num_threads(), len(self.devices), place("cpu").workers
        on_cpu = max(1, alone // count)
        return [
            hands_for(name, self.memory, workers=on_cpu)
            if _found(name).device.type == "cpu"
            else Hands(name, self.memory, 1, max(1, cores // count))
            for name in self.devices
        ]


def hands_for(device: str, memory: int | None, *, workers: int) -> Hands:
    """Return how a process is to use the CPU: each job as many threads as it has in a process alone.

    Args:
        device: The CPU.
        memory: See `Hands`.
        workers: Jobs side by side.
    """
    each = max(1, torch.get_num_threads() // place("cpu").workers)
    return Hands(device, memory, workers, workers * each)


def _found(name: str, memory: int | None = None) -> Placement:
    """A device; with a cap, without which a GPU would be asked, and that takes memory there."""
    return place(name, memory=1 if memory is None else memory)


class _Process:
    """A process that makes parts.

    Args:
        hands: Where.
        work: A `Make`, pickled.
        says: Where what it says goes: `(done, name)` of what it is at, True for a part that is made, the
            exception for one that cannot be; None when it has ended.

    Attributes:
        share: What it is at.
    """

    def __init__(
        self, hands: Hands, work: bytes, says: SimpleQueue[tuple[_Process, object]]
    ) -> None:
        self.hands, self.share = hands, cast("Share | None", None)
        self._process = subprocess.Popen(  # noqa: S603  this interpreter, with our own program
            [sys.executable, "-X", "faulthandler", "-c", _BEGIN, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._to = cast("IO[bytes]", self._process.stdin)
        start_new_thread(_listen, (self, cast("IO[bytes]", self._process.stdout), says.put))
        self._send(work)
        self._send(hands)

    def give(self, share: Share | None) -> None:
        """Have a part made; None: nothing any more."""
        self.share = share
        if share is not None:
            self._send(share)

    def end(self, *, within: float = 0) -> str:
        """End it, if it does not end by itself, and say how it did.

        Args:
            within: Seconds that it may take to end by itself.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within)
        self._process.kill()
        status = self._process.wait()
        with contextlib.suppress(OSError):
            self._to.close()
        if status >= 0:
            return f"ended with status {status}"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-status).name}"
        return f"was ended by signal {-status}"

    def _send(self, thing: object) -> None:
        # That it has ended is heard from the other side.
        with contextlib.suppress(OSError):
            pickle.dump(thing, self._to)
            self._to.flush()


def _listen(
    process: _Process, source: IO[bytes], put: Callable[[tuple[_Process, object]], None]
) -> None:
    """Pass on what a process says, until it ends."""
    with source:
        while True:
            try:
                put((process, pickle.load(source)))  # noqa: S301  our own process
            except (EOFError, OSError, pickle.UnpicklingError):
                put((process, None))
                return
