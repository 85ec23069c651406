"""What runs in a process of several that make parts; see `processes.py`, which starts it."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from _thread import start_new_thread
from functools import partial
from queue import SimpleQueue
from typing import IO, cast

from ..errors import LoraOpsError
from .engine import Make, Share
from .processes import Hands


def serve(work: bytes) -> None:
    """Make parts as they are asked for on the standard input, until that is closed.

    Args:
        work: A `Make`, pickled.
    """
    tasks: SimpleQueue[object] = SimpleQueue()
    start_new_thread(_hear, (sys.stdin.buffer, tasks))
    say = partial(_say, _own_output())
    try:
        make = cast("Make", pickle.loads(work))  # noqa: S301  from the process that started this one
        placement = cast("Hands", tasks.get()).placement()
        while True:
            make(cast("Share", tasks.get()), placement, lambda done, _, name: say((done, name)))
            say(True)
    except Exception as error:  # noqa: BLE001  it is raised there
        if not isinstance(error, LoraOpsError):
            traceback.print_exc()
        say(_portable(error))
        tasks.get()  # the end


def _hear(source: IO[bytes], tasks: SimpleQueue[object]) -> None:
    """Take what comes; the end of it is the end of this process, whatever it is at."""
    try:
        while True:
            tasks.put(pickle.load(source))  # noqa: S301  the same
    finally:
        os._exit(0)


def _own_output() -> IO[bytes]:
    """The standard output, for us alone: what else is printed goes to the standard error."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output


def _say(output: IO[bytes], thing: object) -> None:
    pickle.dump(thing, output)
    output.flush()


def _portable(error: Exception) -> Exception:
    """An exception that can be taken up elsewhere: itself, or what it says."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    except Exception:  # noqa: BLE001  whatever it holds
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
