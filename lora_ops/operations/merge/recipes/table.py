"""Reading a table of a document strictly: what is not asked for is an error, with the nearest name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from ....errors import ArgumentError
from ....models.pairing import nearest
from ....text import plain
from .places import Place
from .recipe import Value, Weight, is_amount

_SHOWN = 60  # characters of a value in a message
_LONGEST = 4096  # numbers in a list


class Table:
    """One table, and what has been read of it."""

    def __init__(
        self, data: object, path: Sequence[str | int], place: Callable[[Sequence[str | int]], str]
    ) -> None:
        self._path, self._place = tuple(path), place
        if not isinstance(data, Mapping):
            raise ArgumentError(f"{place(path)} is {shown(data)}, not a table")
        self._data = cast("Mapping[str, object]", data)
        self._read: list[str] = []

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self._place, self._path)

    def fault(self, key: str, what: str) -> ArgumentError:
        """An error about the value of a key."""
        return ArgumentError(f"{self.place.of(key)} {what}")

    def get(self, key: str) -> object:
        """Anything; None where it is absent."""
        self._read.append(key)
        return self._data.get(key)

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.fault(key, f"is {shown(value)}, not a text in quotes")
        return value

    def whole(self, key: str) -> int | None:
        """An integer."""
        value = self.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise self.fault(key, f"is {shown(value)}, not a whole number")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; a single one is a list of it."""
        value = self.get(key)
        rows = [value] if isinstance(value, str) else value
        if rows is None:
            return ()
        if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
            raise self.fault(key, f"is {shown(value)}, not a list of texts in quotes")
        return tuple(cast("list[str]", rows))

    def weight(self, key: str, default: Weight) -> Weight:
        """A number, text with `$`, or a list of them."""
        value = self.get(key)
        found = default if value is None else self._value(key, value)
        if isinstance(found, bool) or not (isinstance(found, tuple) or is_amount(found)):
            raise self.fault(key, f"is {shown(value)}, not a number, a name `$a` or a list of them")
        return found

    def tables(self, key: str) -> list[Table]:
        """An array of tables."""
        value = self.get(key)
        if not isinstance(value, list | None):
            raise self.fault(key, f"is {shown(value)}, not a list of tables")
        rows = cast("list[object]", value or [])
        return [
            Table(row, (*self._path, key, number), self._place)
            for number, row in enumerate(rows, 1)
        ]

    def table(self, key: str) -> Table:
        """A table; an empty one where it is absent."""
        value = self.get(key)
        return Table({} if value is None else value, (*self._path, key), self._place)

    def items(self) -> Mapping[str, object]:
        """All of it, under any names."""
        self._read.extend(self._data)
        return self._data

    def rest(self, known: Sequence[str]) -> dict[str, Value]:
        """What was not asked for, as parameters; a name too near to a known key is an error."""
        found: dict[str, Value] = {}
        for key, value in self._data.items():
            if key in self._read:
                continue
            if near := difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.8):
                raise self._unknown(key, f"`{near[0]}`")
            found[key] = self._value(key, value)
        return found

    def done(self) -> None:
        """Raise an `ArgumentError` if there is a key that was not asked for."""
        for key in self._data:
            if key not in self._read:
                raise self._unknown(key, nearest(key, self._read))

    def _unknown(self, key: str, near: str) -> ArgumentError:
        return self.fault(key, f"is no key of this table; nearest: {near}")

    def _value(self, key: str, value: object) -> Value:
        if isinstance(value, list):
            rows = cast("list[object]", value)
            if not rows or len(rows) > _LONGEST or not all(map(is_amount, rows)):
                raise self.fault(
                    key, f"is {shown(rows)}, not a list of 1 to {_LONGEST} numbers or names `$a`"
                )
            return tuple(self._finite(key, row) for row in rows)
        return self._finite(key, value)

    def _finite(self, key: str, value: object) -> bool | float | str:
        if isinstance(value, bool | str):
            return value
        try:
            if isinstance(value, int | float) and math.isfinite(value):
                return float(value)
        except OverflowError:
            pass
        raise self.fault(key, f"is {shown(value)}, not a finite number, a text or true or false")


def shown(value: object) -> str:
    """A value in a message: short, in one line."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return f"a list of {len(cast('list[object]', value))}"
    text = plain(str(value)[: _SHOWN * 4])
    return f"`{text[:_SHOWN]}{'…' if len(text) > _SHOWN else ''}`"
