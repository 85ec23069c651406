"""Hashes of large files, remembered in the user's cache folder: taking one costs more than a merge.

A hash counts as long as the file's device, inode, size, and times of the last changes of its data and of its
entry are what they were. Whatever goes wrong with the cache, the hash is taken anew.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

#: Bytes, below which hashing is quicker than it is worth remembering.
LARGE = 1 << 26
# A file that changed within so many ns may change again without a sign of it: clocks tick slowly.
_SETTLED = 2 * 10**9
_MOST = 2000  # hashes; a hundred bytes each


def cache_folder() -> Path | None:
    """Where hashes are kept: below where the system keeps such things, or below `LORAKIT_CACHE`.

    None where that is `off`: nothing is remembered, nor looked up.
    """
    own = os.getenv("LORAKIT_CACHE")
    if own:
        return None if own.lower() == "off" else Path(own) / "sha256"
    if told := os.getenv("XDG_CACHE_HOME"):
        root = Path(told)
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        root = Path(os.getenv("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        root = Path.home() / ".cache"
    return root / "lorakit" / "sha256"


def remembered(path: Path, take: Callable[[], str], *, of: str = "file") -> str:
    """Return the hash of a file, from the cache if it has it.

    Args:
        path: The file.
        take: Computes the hash; an empty one is not remembered.
        of: What is hashed: several hashes of one file are kept apart.
    """
    before, entry = _state(path), None
    if before is None:
        return take()
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # no home, no permission, no text
        folder = cache_folder()
        if folder is None:
            return take()
        entry = folder / f"{before[0]:x}-{before[1]:x}-{of}"
        *state, digest = entry.read_text("ascii").split()
        if state == [str(number) for number in before] and len(digest) == 64:
            return digest
    digest = take()
    settled = max(before[3:]) < time.time_ns() - _SETTLED
    if digest and entry is not None and settled and _state(path) == before:
        with contextlib.suppress(OSError):
            _write(entry, " ".join(map(str, (*before, digest))))
    return digest


def _state(path: Path) -> tuple[int, ...] | None:
    """What tells whether a file is still the same; None for one that is not worth it."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    if found.st_size < LARGE:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _write(entry: Path, text: str) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    known = sorted(entry.parent.iterdir(), key=lambda one: one.stat().st_mtime_ns)
    for old in known[: max(0, len(known) - _MOST)]:
        old.unlink(missing_ok=True)
    temporary = entry.with_name(f".{entry.name}.{secrets.token_hex(4)}")
    temporary.write_text(text, "ascii")
    temporary.replace(entry)
