"""The line of a key in a TOML text, for messages: the parser tells it for faults of syntax alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ....text import plain

_HEADER = re.compile(r"\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The line, from 1, of the innermost part of a path that is found; None if none is.

    A guess that is right for documents as people write them: a table in a line of its own, or keys
    with dots. A key within a table in braces has the line where its name first stands after it.
    """
    lines = text.splitlines()
    start, found = 0, None
    names = [part for part in path if isinstance(part, str)]
    inside: list[str] = []
    for index, part in enumerate(path):
        if isinstance(part, int):
            continue
        count = path[index + 1] if index + 1 < len(path) else 1
        array = index + 1 < len(path)
        wanted = count if isinstance(count, int) else 1
        line = _header(lines, [*inside, part], wanted) if array or not inside else None
        if line is None:
            line = _key(lines, start, part, names, within_table=bool(inside))
        if line is not None:
            start = found = line
        inside.append(part)
    return None if found is None else found + 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a table is in a document.

    Attributes:
        told: Names the place of a path: the names of tables and the numbers of their rows, and a key.
        path: Of the table.
    """

    told: Callable[[Sequence[str | int]], str]
    path: tuple[str | int, ...]

    def of(self, *path: str | int) -> str:
        """Where something in the table is, for a message."""
        return self.told((*self.path, *path))


def place(text: str, path: Sequence[str | int]) -> str:
    """A place in a document for a message: its line, where it is TOML, and its name."""
    line = None if text.lstrip().startswith("{") else line_of(text, path)
    return f"line {line}, {named(path)}" if line else named(path)


def named(path: Sequence[str | int]) -> str:
    """A place in words: `[[step]]` 2 `terms` 1 `weight`."""
    words: list[str] = []
    for index, part in enumerate(path):
        numbered = index + 1 < len(path) and isinstance(path[index + 1], int)
        if isinstance(part, int):
            words.append(str(part))
        else:
            words.append(f"`[[{part}]]`" if numbered and not index else f"`{plain(part)}`")
    return " ".join(words) or "the recipe"


def _header(lines: Sequence[str], names: Sequence[str], wanted: int) -> int | None:
    seen = 0
    for number, line in enumerate(lines):
        match = _HEADER.match(line)
        if match and [part.strip().strip("\"'") for part in match[2].split(".")] == [*names]:
            seen += 1
            if seen == wanted:
                return number
    return None


def _key(
    lines: Sequence[str], start: int, name: str, names: Sequence[str], *, within_table: bool
) -> int | None:
    key = re.compile(rf"(?:^|[\s.{{,\"']){re.escape(name)}[\"']?\s*(?:=|\.)")
    for number in range(start, len(lines)):
        header = _HEADER.match(lines[number])
        if header and number > start and within_table and not header[2].startswith(names[0] + "."):
            return None
        if not header and key.search(lines[number]):
            return number
    return None
