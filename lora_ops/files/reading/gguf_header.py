"""The header of a GGUF file, read with suspicion: what it says of itself, and where each tensor lies.

The format: the mark `GGUF`, a version, the numbers of tensors and of entries; the entries (a name, a type, a
value); of each tensor the name, its sizes (the fastest first), its type and its offset; the data, aligned. All
is little-endian. Source: the specification in the ggml repository.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...errors import FormatError
from ..base import quote
from .ranges import RangeReader

_VERSIONS = (2, 3)
_LONGEST = 100_000_000  # bytes of a header, as of safetensors'
_PIECE = 1 << 16  # bytes read at once
_MOST_DIMS = 5  # ggml itself has four; files of video models have kernels of five
# Kinds of values: those of one size by the struct code, then texts and lists.
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _LIST = 8, 9
_INT32 = 5
_KEPT = 16  # longest list of numbers that is kept; vocabularies are not

#: A value of an entry: of lists, only short ones of numbers.
Value = str | int | float | tuple[int | float, ...] | None


class BlockType(NamedTuple):
    """How ggml stores numbers.

    Attributes:
        name: As people call it.
        block: Numbers in a block.
        size: Bytes of a block.
    """

    name: str
    block: int
    size: int


#: By the number that stands for it in a file.
TYPES: Mapping[int, BlockType] = {
    number: BlockType(*row)
    for number, row in {
        0: ("F32", 1, 4),
        1: ("F16", 1, 2),
        2: ("Q4_0", 32, 18),
        3: ("Q4_1", 32, 20),
        6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24),
        8: ("Q8_0", 32, 34),
        9: ("Q8_1", 32, 40),
        10: ("Q2_K", 256, 84),
        11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176),
        14: ("Q6_K", 256, 210),
        15: ("Q8_K", 256, 292),
        16: ("IQ2_XXS", 256, 66),
        17: ("IQ2_XS", 256, 74),
        18: ("IQ3_XXS", 256, 98),
        19: ("IQ1_S", 256, 50),
        20: ("IQ4_NL", 32, 18),
        21: ("IQ3_S", 256, 110),
        22: ("IQ2_S", 256, 82),
        23: ("IQ4_XS", 256, 136),
        24: ("I8", 1, 1),
        25: ("I16", 1, 2),
        26: ("I32", 1, 4),
        27: ("I64", 1, 8),
        28: ("F64", 1, 8),
        29: ("IQ1_M", 256, 56),
        30: ("BF16", 1, 2),
        34: ("TQ1_0", 256, 54),
        35: ("TQ2_0", 256, 66),
        39: ("MXFP4", 32, 17),
        40: ("NVFP4", 64, 36),
    }.items()
}


class GgufEntry(NamedTuple):
    """One tensor in the header.

    Attributes:
        type: How its numbers are stored.
        shape: As torch has it, the slowest axis first; its last axis is cut into blocks.
        begin: First byte in the file.
        size: Bytes.
    """

    type: BlockType
    shape: tuple[int, ...]
    begin: int
    size: int


class GgufHeader(NamedTuple):
    """What stands in front of the data.

    Attributes:
        tensors: By name, in the order of their data.
        values: Of the entries, by name.
        spans: Where each entry's kind and value lie in the file: first byte, and how many.
    """

    tensors: dict[str, GgufEntry]
    values: dict[str, Value]
    spans: dict[str, tuple[int, int]]


def read_gguf_header(file: RangeReader) -> GgufHeader:
    """Read a header and check that all it names lies in the file.

    Args:
        file: The file.

    Raises:
        FormatError: It is damaged, hostile, or of a version or type that is not known.
    """
    cursor = _Cursor(file)
    mark, version = cursor.unpack("4sI")
    if mark != b"GGUF":
        raise cursor.damaged("it does not begin with `GGUF`")
    if version not in _VERSIONS:
        raise cursor.damaged(f"its version is {version}; 2 and 3 are read, in little-endian order")
    tensors, entries = cursor.unpack("QQ")
    values: dict[str, Value] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(entries):
        name, begin = cursor.text(), cursor.at
        values[name] = cursor.value(cursor.unpack("I")[0])
        spans[name] = begin, cursor.at - begin
    rows = [cursor.tensor() for _ in range(tensors)]
    step = values.get("general.alignment", 32)
    if not isinstance(step, int) or step <= 0:
        raise cursor.damaged("its alignment is no number")
    start = math.ceil(cursor.at / step) * step
    found: dict[str, GgufEntry] = {}
    end = 0
    for name, type, shape, offset in sorted(rows, key=lambda row: row[3]):
        size = math.prod(shape) // type.block * type.size
        if name in found:
            raise cursor.damaged(f"the name {quote(name)} appears twice")
        if offset < end:
            raise cursor.damaged(f"the data of {quote(name)} overlaps that of another tensor")
        end = offset + size
        if start + end > file.size:
            raise FormatError(
                f"the file is truncated: {file.size} of at least {start + end} bytes; download or copy "
                "it again",
                path=file.path,
            )
        found[name] = GgufEntry(type, shape, start + offset, size)
    return GgufHeader(found, values, spans)


class _Cursor:
    """Reads a header piece by piece, and never more than there is."""

    def __init__(self, file: RangeReader) -> None:
        self._file = file
        self._piece, self._begin = b"", 0
        self.at = 0

    def damaged(self, why: str) -> FormatError:
        return FormatError(f"the header of a GGUF file is damaged: {why}", path=self._file.path)

    def take(self, size: int) -> bytes:
        if size > min(_LONGEST, self._file.size) - self.at:
            raise self.damaged("it is truncated")
        first = self.at - self._begin
        if first + size > len(self._piece):
            self._begin, first = self.at, 0
            length = min(max(size, _PIECE), self._file.size - self.at)
            self._piece = self._file.bytes(self.at, length, "the header")
        self.at += size
        return self._piece[first : first + size]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))

    def text(self) -> str:
        try:
            return self.take(self.unpack("Q")[0]).decode("utf-8")
        except ValueError as error:
            raise self.damaged("a text in it is not valid Unicode") from error

    def value(self, kind: int, within: int = 0) -> Value:
        if kind in _NUMBERS:
            return self.unpack(_NUMBERS[kind])[0]
        if kind == _TEXT:
            return self.text()
        if kind != _LIST or within > 2:
            raise self.damaged(f"an entry of kind {kind}")
        inner, count = self.unpack("IQ")
        if inner in _NUMBERS:
            size = struct.calcsize(_NUMBERS[inner])
            data = self.take(size * count)
            return struct.unpack(f"<{count}{_NUMBERS[inner]}", data) if count <= _KEPT else None
        for _ in range(count):
            self.value(inner, within + 1)
        return None

    def tensor(self) -> tuple[str, BlockType, tuple[int, ...], int]:
        name = self.text()
        (count,) = self.unpack("I")
        if count > _MOST_DIMS:
            raise self.damaged(f"{quote(name)} has {count} axes")
        shape = self.unpack(f"{count}Q")[::-1]
        number, offset = self.unpack("IQ")
        if number not in TYPES:
            raise self.damaged(f"{quote(name)} is of type {number}, which is not known")
        type = TYPES[number]
        if math.prod(size or 1 for size in shape) >= 2**63 or (
            shape[-1] % type.block if shape else type.block > 1
        ):
            raise self.damaged(f"the shape {list(shape)} of {quote(name)} is none of {type.name}")
        return name, type, shape, offset
