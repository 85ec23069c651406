"""Writing GGUF files: laid out from headers, filled from any thread, whole under their name or not at all.

The package gguf has a writer, too. It takes tensors in order only, needs all that a file says of itself
before the first of them, and writes under the file's own name; so it gives the types, and this writes them.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..reading.gguf_file import PADDING, SHAPE
from ..reading.gguf_header import TYPES
from .pieces import Piece
from .placed import PlacedFile
from .publish import publish_all, write_all
from .writer import Written

_ALIGNMENT = 32  # bytes, where a file says nothing else
_VERSION = 3
_NUMBERS = {one.name: number for number, one in TYPES.items()}
_WHOLE, _INTEGER, _TEXT, _LIST = 4, 5, 8, 9  # kinds of values: uint32, int32, texts, lists
# What a safetensors file says of itself that is not of the model.
_FALSE = ("format",)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        name: In the file.
        type: ggml's name of how its numbers are stored: `Q8_0`.
        shape: Of its numbers, as torch has it.
        stored: Shape in the file, where that is another.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    stored: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        one = TYPES[_NUMBERS[self.type]]
        return math.prod(self.shape) // one.block * one.size


@dataclass(frozen=True, slots=True, eq=False)
class GgufLayout:
    """What a file will hold, but for the record of how it was made.

    Attributes:
        tensors: By key of whoever writes them, in the order of their data.
        entries: What it says of its model, by name: kind and value, as they are stored.
    """

    tensors: Mapping[str, GgufTensor]
    entries: Mapping[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def starts(self) -> dict[str, int]:
        """Where the data of each tensor begins, from the first one's on."""
        found: dict[str, int] = {}
        at = 0
        for key, one in self.tensors.items():
            found[key] = at
            at += _aligned(one.size)
        return found

    @property
    def data(self) -> int:
        """Bytes of all tensors, with what aligns them."""
        return sum(_aligned(one.size) for one in self.tensors.values())

    def room(self, metadata: Mapping[str, str]) -> int:
        """Bytes in front of the data, with such a record or a shorter one."""
        return _aligned(len(self._header(metadata, 0)))

    def size(self, metadata: Mapping[str, str]) -> int:
        """Bytes of the file, with such a record or a shorter one."""
        return self.room(metadata) + self.data

    def header(self, metadata: Mapping[str, str], room: int) -> bytes:
        """All that stands in front of the data, in exactly so many bytes.

        Args:
            metadata: The record, none of which replaces an entry.
            room: Bytes; see `room`.
        """
        return self._header(metadata, room - len(self._header(metadata, 0)))

    def _header(self, metadata: Mapping[str, str], padding: int) -> bytes:
        told = {k: text(v) for k, v in metadata.items() if k not in _FALSE}
        shapes = {
            SHAPE + one.name: integers(one.shape)
            for one in self.tensors.values()
            if one.stored is not None
        }
        entries = {**self.entries, **shapes}
        entries |= {name: told[name] for name in sorted(told) if name not in entries}
        entries[PADDING] = text(" " * padding)  # the record may be shorter than it could be
        parts = [struct.pack("<4sIQQ", b"GGUF", _VERSION, len(self.tensors), len(entries))]
        parts += [_string(name) + value for name, value in entries.items()]
        for key, start in self.starts.items():
            one = self.tensors[key]
            shape = one.shape if one.stored is None else one.stored
            parts += [_string(one.name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])]
            parts += [struct.pack("<IQ", _NUMBERS[one.type], start)]
        return b"".join(parts)


class GgufWriter(PlacedFile):
    """A GGUF file whose tensors all have their places from the beginning; use it in a `with` statement.

    The data goes to a hidden sibling of the output. `finish` puts the header in front of it and renames
    it; without `finish` it is removed, and what was under the output's name stays.

    Args:
        path: The output.
        layout: What it will hold.
        dtypes: By key, of the elements that `write_at` gets, as safetensors names them: `U8` for codes.
        metadata: The record, as long as it can become.
        replace: Whether a file that is there may be replaced; see `Place`.

    Raises:
        ArgumentError: by `with`: the name is taken.
        WriteError: by `with`, `write_at`, `copy` and `finish`: the file could not be written.
    """

    def __init__(
        self,
        path: Path,
        layout: GgufLayout,
        dtypes: Mapping[str, str],
        metadata: Mapping[str, str],
        *,
        replace: bool = True,
    ) -> None:
        super().__init__(path, replace=replace)
        self._layout = layout
        self._begin = layout.room(metadata)
        self._size = layout.data
        self._pieces = {
            key: Piece(key, dtypes[key], one.shape, one.size) for key, one in layout.tensors.items()
        }
        self._starts = layout.starts
        for key, start in self._starts.items():  # between tensors there is nothing to write
            size = layout.tensors[key].size
            self._fill(start + size, _aligned(size) - size)

    def write(self, key: str, tensor: Tensor) -> None:
        """Fill the place of a tensor; see `write_at`."""
        self.write_at(key, 0, tensor)

    def finish(
        self, metadata: Mapping[str, str] | None = None, *, hash_keys: Sequence[str] = ()
    ) -> Written:
        """Write the header, and give the file its name.

        Args:
            metadata: The record: strings by strings.
            hash_keys: Must be none: the data is not hashed.

        Raises:
            ValueError: the record is longer than was said.
            WriteError: the file could not be written, must not replace another, or has a place that
                was not filled.
        """
        if hash_keys:
            raise ValueError("the data is not hashed")
        self._check_filled()
        header = self._layout.header(metadata or {}, self._begin)
        if len(header) != self._begin:
            raise ValueError(f"the header has {len(header)} bytes, and room for {self._begin}")
        with self.place.explained():
            self._file.seek(0)
            write_all(self._file, memoryview(header))
            self._file.truncate(self._begin + self._size)
            os.fsync(self._file.fileno())
            self._file.close()
        publish_all([self.place])
        return Written(self._path, self._begin + self._size, "", len(self._pieces))


def text(value: str) -> bytes:
    """A text as the value of an entry."""
    return struct.pack("<I", _TEXT) + _string(value)


def number(value: int) -> bytes:
    """A whole number as the value of an entry."""
    return struct.pack("<II", _WHOLE, value)


def integers(values: Sequence[int]) -> bytes:
    """A list of whole numbers as the value of an entry."""
    return struct.pack(f"<IIQ{len(values)}i", _LIST, _INTEGER, len(values), *values)


def _string(value: str) -> bytes:
    found = value.encode("utf-8", "replace")  # the name of a file may be no Unicode
    return struct.pack("<Q", len(found)) + found


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
