"""Whose a folder of parts is: one run's alone, or of many that make a part each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

from ..errors import ArgumentError
from ..files import explained, make_folder

try:
    import fcntl
except ImportError:  # Windows: there it is up to the user
    fcntl = None

_LOCK = "lock"


@contextlib.contextmanager
def claimed(folder: Path, *, alone: bool) -> Generator[None, None, None]:
    """Hold a folder, which is made where it does not exist, until the end of the `with` statement.

    What holds it is a lock of the system, which goes with its process, however that ends.

    Args:
        folder: Of parts.
        alone: Whether nobody else may be at it.

    Raises:
        ArgumentError: Somebody else is.
        WriteError: It cannot be made.
    """
    make_folder(folder)
    if fcntl is None:
        yield
        return
    with explained(folder / _LOCK):
        handle = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            who = "another run makes or finishes" if alone else "another run finishes"
            raise ArgumentError(
                f"{who} these parts; wait until it has ended", path=folder
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)
