"""Numbers of bytes as people write them."""

from __future__ import annotations

import math

from .errors import ArgumentError

_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_size(text: str) -> int:
    """Read a number of bytes: 8GB, 512MiB, 1000000.

    Raises:
        ArgumentError: It is none.
    """
    letters = text.strip().upper().removesuffix("B")
    number = letters.rstrip("KMGI")
    factor = _FACTORS.get(letters[len(number) :])
    try:
        size = float(number) * factor if factor else math.nan
    except ValueError:
        size = math.nan
    if not math.isfinite(size):
        raise ArgumentError(f"`{text}` is not a size; write 8GB, 512MiB or a number of bytes")
    return int(size)


def exact_size(size: int) -> str:
    """The shortest decimal form that `parse_size` reads back as the same: 50MB, 1500kB, 1234."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
