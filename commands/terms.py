"""Terms of a sum on the command line: a file, its strength, its blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..lora_ops import ArgumentError

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True, slots=True)
class Term:
    """One adapter of a sum.

    Attributes:
        path: Its file.
        strength: Factor on all of it, any finite number.
        blocks: Strengths by block, as `--blocks` takes them.
    """

    path: Path
    strength: float = 1.0
    blocks: str | None = None


def parse_term(text: str) -> Term:
    r"""Read `FILE`, `FILE:STRENGTH` or `FILE:STRENGTH:BLOCKS`.

    Colons of a file that exists are its own, and so is that of a drive (`C:\x.safetensors:0.5`).

    Raises:
        ArgumentError: The strength is not a finite number.
    """
    found = existing(text)
    if found is not None:
        return _term(text, *found)
    drive = _DRIVE.match(text) is not None
    name, *rest = text[2 * drive :].split(":", 2)
    return _term(text, Path(text[: 2 * drive] + name), rest)


def existing(text: str) -> tuple[Path, list[str]] | None:
    """The file that a term begins with and what follows its name; None where there is no such file."""
    parts = text.split(":")
    for last in range(len(parts), 0, -1):
        path = Path(":".join(parts[:last]))
        try:
            if len(parts) - last <= 2 and path.exists():
                return path, parts[last:]
        except OSError:  # too long for a name: it is a list of blocks
            continue
    return None


def _term(text: str, path: Path, rest: list[str]) -> Term:
    if not rest:
        return Term(path)
    try:
        strength = float(rest[0])
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise ArgumentError(
            f"`{rest[0]}` in `{text}` is not a finite strength; "
            "write FILE, FILE:STRENGTH or FILE:STRENGTH:BLOCKS, as in `a.safetensors:1:OUTALL`"
        )
    return Term(path, strength, rest[1] if len(rest) > 1 else None)


def parse_method(text: str) -> tuple[str, dict[str, float | str]]:
    """Read `NAME` or `NAME,PARAMETER=VALUE,...`, where a value may be a word.

    Raises:
        ArgumentError: A parameter has no value.
    """
    name, *rest = (part.strip() for part in text.split(","))
    parameters: dict[str, float | str] = {}
    for part in rest:
        key, _, value = (word.strip() for word in part.partition("="))
        if not key or not value:
            raise _no_parameter(part, text)
        try:
            parameters[key] = float(value)
        except ValueError:
            parameters[key] = value
    return name, parameters


def _no_parameter(part: str, text: str) -> ArgumentError:
    return ArgumentError(
        f"`{part}` in method `{text}`: write NAME,PARAMETER=VALUE, as in `slerp,t=0.3`"
    )


def kept_places(names: Sequence[str], paths: Sequence[Path]) -> list[int] | None:
    """The places of the terms that --keep-whole names: by path, file name or its stem; None for no option.

    Raises:
        ArgumentError: None of the terms is called so.
    """
    if not names:
        return None
    places: list[int] = []
    for name in names:
        if name == "none":
            continue
        found = [at for at, path in enumerate(paths) if name in (str(path), path.name, path.stem)]
        if not found:
            raise ArgumentError(
                f"`{name}` is none of what is added: give one of {', '.join(path.name for path in paths)}"
            )
        places += found
    return places
