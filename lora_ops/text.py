"""Numbers and names for people, wherever they read them: sizes, errors, names made harmless."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


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
