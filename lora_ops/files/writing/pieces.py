"""The tensors of a safetensors file that is being written: their sizes, their order, their header."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import WriteError
from ..dtypes import DTYPE_BITS, dtype_name
from ..header import MAX_HEADER, check_name, render_header

#: Bytes: the widest element, and the format's own for the start of the data.
ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the file.

    Attributes:
        key: Its name.
        dtype: As the header names it.
        shape: Elements along each axis.
        size: Bytes.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def aligned(self) -> bool:
        """Whether whatever follows it stays aligned."""
        return self.size % ALIGNMENT == 0


def piece_of(key: str, dtype: torch.dtype, shape: Sequence[int]) -> Piece:
    """Return the piece of a tensor.

    Raises:
        ArgumentError: the format cannot hold its dtype, or its name.
    """
    check_name(key)
    return Piece(key, dtype_name(dtype), tuple(shape), math.prod(shape) * dtype.itemsize)


def file_order(pieces: Iterable[Piece]) -> list[Piece]:
    """As they come; then those of odd sizes, so that each begins at a multiple of its element."""
    known = list(pieces)
    odd = [piece for piece in known if not piece.aligned]
    odd.sort(key=lambda piece: (-DTYPE_BITS[piece.dtype], piece.key))
    return [piece for piece in known if piece.aligned] + odd


def header_text(pieces: Iterable[Piece], metadata: Mapping[str, str]) -> bytes:
    """The JSON text of the header."""
    return render_header(((p.key, p.dtype, p.shape, p.size) for p in pieces), metadata)


def check_header(text: bytes, path: Path) -> None:
    """Refuse a header that nobody would read.

    Args:
        text: Its JSON.
        path: Of the file that it would be in.

    Raises:
        WriteError: it is longer than the official library reads.
    """
    if len(text) > MAX_HEADER:
        raise WriteError(
            f"a header of {len(text)} bytes is more than loaders read ({MAX_HEADER}); "
            "shorten the metadata",
            path=path,
        )


def framed(text: bytes, room: int) -> bytes:
    """The header as it lies in the file, with its length in front, in this many bytes of room."""
    return room.to_bytes(8, "little") + text.ljust(room)


def aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT
