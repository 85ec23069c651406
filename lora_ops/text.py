"""Numbers and names for people, wherever they read them: sizes, errors, names made harmless."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from .errors import ArgumentError

# How a message names a way out, in Python's words. The skins put their own for it, name for name:
# terminal/wording.py the options and commands, nodes/form/wording.py the inputs and nodes.
#: What to give: `dtype=`, `to="lora"`, `force=True`. The groups: name, and value without its quotes.
PARAMETER = re.compile(r"`([a-z_]+)=\"?([^`]*?)\"?`")
#: What to call: `describe()`, `convert(lora, to="lora")`. The group: name.
CALL = re.compile(r"`([a-z_]+)\([^`]*\)`")

# What a number of bytes may end in.
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def plain(text: str | Path) -> str:
    """One line without control characters: a file's names and metadata are a stranger's words."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def either(names: Sequence[str]) -> str:
    """`unknown`, or what it may be: unknown: one, other or third."""
    if len(names) < 2:
        return ": ".join(("unknown", *names))
    return f"unknown: {', '.join(names[:-1])} or {names[-1]}"


def human_size(size: float) -> str:
    """Bytes for people: 1.4 MB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def human_error(error: float) -> str:
    """A relative error: 0.1234; 2.1e-05 where four places would show nothing of it."""
    return f"{error:.1e}" if 0 < abs(error) < 0.001 else f"{error:.4f}"


def estimate_text(rounding: float, error: float) -> str:
    """What is told of a difference of weights that were rounded when they were stored.

    Args:
        rounding: Share of the squared difference that is probably rounding.
        error: Estimated relative error against the rest, the true change.
    """
    return (
        f"about {rounding:.1%} of the squared difference is rounding of storage; without it, against the "
        f"true change, the relative error is about {human_error(error)}"
    )


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
