"""What all writers of one safetensors file share: its parts, its header, how it is completed."""

from __future__ import annotations

import contextlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from ...errors import WriteError
from ..dtypes import DTYPE_BITS, dtype_name
from ..header import MAX_HEADER, check_name, render_header
from .publish import Place, publish_all, write_all

if TYPE_CHECKING:
    from typing_extensions import Self

_ALIGNMENT = 8  # bytes: the widest element, and the format's own for the start of the data
_SLACK = 200  # one part in that many of a file may be unused room


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it was written.

    Attributes:
        path: Where it is.
        size: Bytes in all.
        data_sha256: SHA-256 of its data section, lower-case hex; empty where it was not taken.
        tensors: How many there are.
        data_size: Bytes of the tensors alone.
    """

    path: Path
    size: int
    data_sha256: str
    tensors: int
    data_size: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor's place in the header.

    Attributes:
        key: Its name.
        dtype: Name as in the file.
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
        return self.size % _ALIGNMENT == 0


class FileWriter(ABC):
    """A safetensors file that is being written; use it in a `with` statement.

    The data goes to a hidden sibling of the output, behind room for the header. `finish` completes
    and renames it; without `finish` it is removed, and what was under the output's name stays.

    Args:
        path: The output.
        header_room: Bytes to keep for the header. Too few, or more by a share of the data that one
            would notice, cost one copy of the file in `finish`.
        replace: Whether a file that is there may be replaced; see `Place`.

    Attributes:
        place: Of the output, within the `with` statement.

    Raises:
        ArgumentError: by `with`: the name is taken.
        WriteError: by `with`, and by whatever writes: the file could not be written.
    """

    def __init__(self, path: str | Path, header_room: int, *, replace: bool) -> None:
        self._path = Path(path)
        self._replace = replace
        self._room = _rounded(header_room)

    def __enter__(self) -> Self:
        self.place = Place(self._path, replace=self._replace)
        try:
            with self.place.explained():
                self._file = self.place.open()
                self._file.seek(self._data_start)
        except BaseException:  # Ctrl-C too: nobody else would clean up yet
            self.place.clean()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._let_go()

    def finish(
        self, metadata: Mapping[str, str] | None = None, *, hash_keys: Sequence[str] = ()
    ) -> Written:
        """Complete the data, write the header, and give the file its name.

        Args:
            metadata: Strings by strings.
            hash_keys: Metadata keys that get the SHA-256 of the data section.

        Raises:
            WriteError: the file could not be written, must not replace another, or lacks a tensor.
        """
        written = self.complete(metadata, hash_keys=hash_keys)
        publish_all([self.place])
        return written

    def complete(
        self, metadata: Mapping[str, str] | None = None, *, hash_keys: Sequence[str] = ()
    ) -> Written:
        """Do what `finish` does, all but the name: for a file that gets it together with others."""
        pieces, digest = self._settle()
        size = sum(piece.size for piece in pieces)
        text = header_text(pieces, {**(metadata or {}), **dict.fromkeys(hash_keys, digest)})
        if len(text) > MAX_HEADER:
            raise WriteError(
                f"a header of {len(text)} bytes is more than loaders read ({MAX_HEADER}); "
                "shorten the metadata",
                path=self._path,
            )
        with self.place.explained():
            # Where the file is small, what is left of the room would be much of it.
            if not 0 <= self._room - len(text) <= size // _SLACK + _ALIGNMENT:
                self._move_data(len(text))
            self._file.seek(0)
            write_all(self._file, memoryview(_framed(text, self._room)))
            os.fsync(self._file.fileno())
            self._file.close()
        return Written(self._path, self._data_start + size, digest, len(pieces), size)

    @abstractmethod
    def _settle(self) -> tuple[list[Piece], str]:
        """Complete the data; return its pieces in their order, and its SHA-256 or nothing."""

    def _let_go(self) -> None:
        """Close the file, and remove what did not get the output's name."""
        with contextlib.suppress(OSError):
            self._file.close()
        self.place.clean()

    @property
    def _data_start(self) -> int:
        """Where the data begins in the file, in bytes."""
        return 8 + self._room

    def _move_data(self, room: int) -> None:
        """Copy the data behind room of another size."""
        old, data_start = self._file, self._data_start
        self._room = _rounded(room)
        self._file = self.place.open()
        with old:
            old.seek(data_start)
            self._file.seek(self._data_start)
            shutil.copyfileobj(old, self._file, 1 << 20)


def piece_of(key: str, dtype: torch.dtype, shape: Sequence[int]) -> Piece:
    """Return the piece of a tensor.

    Raises:
        ArgumentError: the format cannot hold its dtype, or its name.
    """
    check_name(key)
    size = torch.Size(shape).numel() * dtype.itemsize
    return Piece(key, dtype_name(dtype), tuple(shape), size)


def file_order(pieces: Iterable[Piece]) -> list[Piece]:
    """As they come; then those of odd sizes, so that each begins at a multiple of its element."""
    known = list(pieces)
    odd = [piece for piece in known if not piece.aligned]
    odd.sort(key=lambda piece: (-DTYPE_BITS[piece.dtype], piece.key))
    return [piece for piece in known if piece.aligned] + odd


def header_text(pieces: Iterable[Piece], metadata: Mapping[str, str]) -> bytes:
    """The JSON text of the header."""
    return render_header(((p.key, p.dtype, p.shape, p.size) for p in pieces), metadata)


def _framed(text: bytes, room: int) -> bytes:
    return room.to_bytes(8, "little") + text.ljust(room)


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
