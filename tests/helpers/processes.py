"""Processes and what they have begun, as the system tells of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path


def children(process: int) -> list[int]:
    """Those that a process has begun and that live."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == process and state != "Z":
                found.append(int(path.parent.name))
    return found


def is_alive(process: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{process}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(what: Callable[[], bool], seconds: float = 120) -> None:
    """Wait, and fail if it does not come."""
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "it does not come"
        time.sleep(0.01)
