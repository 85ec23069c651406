"""The header of a safetensors file, read with suspicion and written to the letter.

The format: 8 bytes, little-endian, the length of the header; a JSON object that maps each key to
`dtype`, `shape` and `data_offsets` (and `__metadata__` to a map of strings); the data, which the
tensors cover without holes or overlaps. Source: the README of the safetensors library.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
from collections.abc import Generator, Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple, NoReturn, cast

from ..errors import ArgumentError
from .base import quote
from .dtypes import DTYPE_BITS

#: The longest header that the official library reads, in bytes.
MAX_HEADER = 100_000_000

METADATA_KEY = "__metadata__"
_ANY_SIZE = 10**11
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_DIMS = 64  # more than torch's and numpy's operations take
_MAX_DIGITS = 20  # of a number; more are no size
_LONG = b"0" * (_MAX_DIGITS + 1)
# Every digit to 0, all else to a space: five times as fast as a regular expression over megabytes.
_DIGITS = bytes(ord("0") if chr(code) in "0123456789" else ord(" ") for code in range(256))


class Entry(NamedTuple):
    """One tensor in the header.

    Attributes:
        dtype: Name as in the file, one of `DTYPE_BITS`.
        shape: Elements along each axis; () for a scalar.
        begin: First byte, counted from the start of the data.
        end: One past the last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of data."""
        return self.end - self.begin


def parse_header(text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    """Parse and check a header, trusting nothing in it.

    Args:
        text: The JSON text, without the 8 bytes of its length.

    Returns:
        The entries in the order of their data, which cover it from byte 0 without holes; and the
        metadata. That the data is really so long is left to the caller, who knows the file.

    Raises:
        ValueError: anything in it is not as the format says, in one line.
    """
    with _no_collection():
        return _parsed(text)


@contextlib.contextmanager
def _no_collection() -> Generator[None, None, None]:
    """Let no search for garbage interrupt: there is none, and among a million lists it takes long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parsed(text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        document: object = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            # Called a million times where there are as many tensors: only if there is a reason.
            parse_int=_integer if _LONG in text.translate(_DIGITS) else None,
        )
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("its JSON is not an object")
    fields = cast("dict[str, object]", document)
    metadata = _metadata(fields.pop(METADATA_KEY, None))
    entries = {_text(key): _entry(key, value) for key, value in fields.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_cover(ordered)
    return ordered, metadata


def check_name(key: str) -> None:
    """Let through what can be the name of a tensor in a safetensors file.

    Raises:
        ArgumentError: it is no valid Unicode, or the one name that is taken.
    """
    if key == METADATA_KEY:
        raise ArgumentError(
            f"`{METADATA_KEY}` cannot be written as a tensor: a safetensors file keeps that name for "
            "its metadata; give the tensor another"
        )
    try:
        _text(key)
    except ValueError as error:
        raise ArgumentError(f"{error}, which a name must be") from None


def render_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> bytes:
    """The header's JSON text; equal arguments give equal bytes.

    Args:
        tensors: (key, dtype name, shape, bytes) of each tensor in the order of the data.
        metadata: Written with sorted keys; an empty one is left out. What is not valid Unicode in
            it, such as the name of a file, gets question marks.

    Raises:
        TypeError: a metadata key or value is not a string.
    """
    rows = list(tensors)
    document: dict[str, object] = {}
    if metadata:
        for pair in metadata.items():
            if not all(isinstance(part, str) for part in pair):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"metadata maps strings to strings, not {pair!r}")
        document[METADATA_KEY] = {_written(k): _written(v) for k, v in sorted(metadata.items())}
    ends = accumulate(size for *_, size in rows)
    for (key, dtype, shape, size), end in zip(rows, ends, strict=True):
        document[key] = {"dtype": dtype, "shape": shape, "data_offsets": (end - size, end)}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def header_room(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
    *,
    spare: int = 0,
) -> int:
    """Bytes to keep free for the header of a file that is not written yet.

    Args:
        tensors: (key, dtype name, shape) of each, none shorter than it can become.
        metadata: As long as it can become.
        spare: Bytes of metadata that are not known yet, at most.
    """
    # No offset has more digits than these will.
    rows = [(key, dtype, shape, _ANY_SIZE) for key, dtype, shape in tensors]
    return len(render_header(rows, metadata or {})) + spare


def _written(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the name {quote(key)} appears twice")
            seen.add(key)
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int:
    """An integer; reading a million digits would take the machine's time, not just memory."""
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is no size")
    return int(text)


def _text(value: object) -> str:
    """A string that can be written again: JSON's escapes can spell half a surrogate pair."""
    if not isinstance(value, str):
        raise ValueError(f"`{METADATA_KEY}` must map strings to strings")
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"the string {quote(value)} is not valid Unicode") from None
    return value


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"`{METADATA_KEY}` must map strings to strings")
    pairs = cast("dict[str, object]", value)
    return {_text(key): _text(entry) for key, entry in pairs.items()}


def _entry(key: str, value: object) -> Entry:
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise ValueError(f"{quote(key)} must have exactly the fields {', '.join(sorted(_FIELDS))}")
    fields = cast("dict[str, object]", value)
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        name = quote(dtype) if isinstance(dtype, str) else "not a string"
        raise ValueError(f"{quote(key)} has an unknown dtype, {name}")
    shape = _naturals(fields["shape"])
    count = 0 if shape is None else math.prod(shape)
    # Zeros do not count: an empty tensor of (2**62, 2**62, 0) overflows torch's strides.
    if (
        shape is None
        or len(shape) > _MAX_DIMS
        or (count or math.prod(n or 1 for n in shape)) >= 2**63
    ):
        raise ValueError(f"the shape of {quote(key)} is not a list of sizes")
    offsets = _naturals(fields["data_offsets"])
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"the data_offsets of {quote(key)} are not a beginning and an end")
    entry = Entry(dtype, shape, *offsets)
    bits = count * DTYPE_BITS[dtype]
    if bits % 8:
        raise ValueError(f"the shape {list(shape)} of {quote(key)} in {dtype} fills no whole bytes")
    if entry.size * 8 != bits:
        raise ValueError(
            f"{quote(key)} has {entry.size} bytes of data, but its shape {list(shape)} "
            f"in {dtype} needs {bits // 8}"
        )
    return entry


def _naturals(value: object) -> tuple[int, ...] | None:
    """A JSON list of integers from 0 to 2**63 - 1, else None; to Python, JSON's true is an int."""
    if not isinstance(value, list):
        return None
    for number in cast("list[object]", value):
        if type(number) is not int or not 0 <= number < 2**63:
            return None
    return tuple(cast("list[int]", value))


def _check_cover(entries: Mapping[str, Entry]) -> None:
    end = 0
    for key, entry in entries.items():
        if entry.begin < end:
            raise ValueError(f"the data of {quote(key)} overlaps that of another tensor")
        if entry.begin > end:
            raise ValueError(f"no tensor owns the {entry.begin - end} bytes before {quote(key)}")
        end = entry.end
