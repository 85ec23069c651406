"""Writing safetensors files: streamed, hashed on the way, whole under their name or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import WriteError
from ..digests import digest_entries
from ..dtypes import DTYPE_BITS, TORCH_DTYPES, memory_of
from ..positional import PART, write_at
from .coverage import Coverage
from .pieces import (
    ALIGNMENT,
    Piece,
    aligned,
    check_header,
    file_order,
    framed,
    header_text,
    piece_of,
)
from .publish import Place, publish_all, write_all

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..base import FileSource

_SLACK = 200  # one part in that many of a file may be unused room


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it was written.

    Attributes:
        path: Where it is.
        size: Bytes in all.
        data_sha256: SHA-256 of its data section, lower-case hex; empty where it was not taken.
        tensors: How many there are.
    """

    path: Path
    size: int
    data_sha256: str
    tensors: int


class SafetensorsWriter:
    """A safetensors file that takes one tensor at a time; use it in a `with` statement.

    The data goes to a hidden sibling of the output, behind room for the header. `finish` completes
    and renames it; without `finish` it is removed, and what was under the output's name stays.

        with SafetensorsWriter(path, header_room=1 << 20) as writer:
            for key in source.keys():
                writer.write(key, source.tensor(key))
            written = writer.finish(metadata, hash_keys=("sshs_model_hash",))

    The data is in the order of `write`, but tensors whose size is no multiple of 8 bytes wait in
    memory and come last, widest elements first: every tensor is aligned, without holes.

    Args:
        path: The output.
        header_room: Bytes to keep for the header. Too few, or more by a share of the data that one
            would notice, cost one copy of the file in `finish`.
        hashed: Whether the data is hashed, which takes as long as writing it; `finish` can then
            fill in `hash_keys`, and `Written.data_sha256` is not empty.
        replace: Whether a file that is there may be replaced; see `Place`.

    Attributes:
        place: Of the output, within the `with` statement.

    Raises:
        ArgumentError: by `with`: the name is taken.
        WriteError: by `with`, `write` and `finish`: the file could not be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        header_room: int = 1 << 16,
        hashed: bool = True,
        replace: bool = True,
    ) -> None:
        self._path = Path(path)
        self._replace = replace
        self._room = aligned(header_room)
        self._pieces: dict[str, Piece] = {}
        self._waiting: dict[str, bytes] = {}
        self._starts: dict[str, int] = {}
        self._filled = Coverage()
        self._turn = threading.Lock()
        self._hash = hashlib.sha256() if hashed else None
        self._size = 0

    def __enter__(self) -> Self:
        self.place = Place(self._path, replace=self._replace)
        try:
            with self.place.explained():
                self._file = self.place.open()
                self._file.seek(8 + self._room)
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
        with contextlib.suppress(OSError):
            self._file.close()
        self.place.clean()

    def write(self, key: str, tensor: Tensor) -> None:
        """Add one tensor, any device, shape and strides. It may change afterwards.

        Raises:
            ArgumentError: the format cannot hold its dtype, or its name.
            ValueError: the key was written before.
            WriteError: the file could not be written.
        """
        if key in self._pieces:
            raise ValueError(f"`{key}` cannot be written a second time")
        piece = piece_of(key, tensor.dtype, tensor.shape)
        self._pieces[key] = piece
        data = memory_of(tensor)
        if piece.aligned:
            self._append(data)
        else:
            self._waiting[key] = bytes(data)

    def lay_out(self, rows: Iterable[tuple[str, torch.dtype, Sequence[int]]]) -> None:
        """Give all tensors their places, before anything is written: `write_at` and `copy` fill them.

        They are where `write` would put them, in this order.

        Args:
            rows: Key, dtype and shape of each.

        Raises:
            ArgumentError: the format cannot hold a dtype, or a name.
        """
        if self._hash or self._pieces:
            raise ValueError("places are for a file that is new, and not hashed")
        pieces = file_order(piece_of(*row) for row in rows)
        self._pieces = {piece.key: piece for piece in pieces}
        starts = accumulate((piece.size for piece in pieces), initial=0)
        self._starts = dict(zip(self._pieces, starts, strict=False))
        self._size = sum(piece.size for piece in pieces)

    def write_at(self, key: str, start: int, piece: Tensor) -> None:
        """Fill part of a place; from any thread, in any order.

        Args:
            key: Of the tensor.
            start: The first element, in C order.
            piece: Elements of the tensor's dtype; they may change afterwards.

        Raises:
            ValueError: they are of another dtype, or do not lie within the tensor.
            WriteError: the file could not be written.
        """
        whole, data, begin = self._pieces[key], memory_of(piece), start * piece.element_size()
        if TORCH_DTYPES[whole.dtype] != piece.dtype or not 0 <= begin <= whole.size - len(data):
            raise ValueError(
                f"`{key}` is {whole.dtype} {list(whole.shape)}: {piece.numel()} of {piece.dtype} "
                f"from {start} on have no place there"
            )
        begin += self._starts[key]
        with self.place.explained():
            write_at(self._file, data, 8 + self._room + begin)
        self._fill(begin, len(data))

    def copy(self, key: str, source: FileSource, own: str) -> None:
        """Fill a place with the bytes of another file's tensor; from any thread.

        Args:
            key: Of the tensor.
            source: The other file.
            own: The tensor's key there; it has the same dtype and shape.

        Raises:
            FormatError: the other file cannot be read.
            WriteError: the file could not be written.
        """
        begin = self._starts[key]
        with self.place.explained():
            source.copy_into(own, self._file, 8 + self._room + begin)
        self._fill(begin, self._pieces[key].size)

    def finish(
        self, metadata: Mapping[str, str] | None = None, *, hash_keys: Sequence[str] = ()
    ) -> Written:
        """Write what waited and the header, and give the file its name.

        Args:
            metadata: Strings by strings.
            hash_keys: Metadata keys that get the SHA-256 of the data section.

        Raises:
            WriteError: the file could not be written, must not replace another, or has a place that
                was not filled.
        """
        written = self.complete(metadata, hash_keys=hash_keys)
        publish_all([self.place])
        return written

    def complete(
        self, metadata: Mapping[str, str] | None = None, *, hash_keys: Sequence[str] = ()
    ) -> Written:
        """Do what `finish` does, all but the name: for a file that gets it together with others."""
        pieces = file_order(self._pieces.values())
        self._check_filled()
        for piece in pieces[len(pieces) - len(self._waiting) :]:
            self._append(memoryview(self._waiting.pop(piece.key)))
        digest = self._hash.hexdigest() if self._hash else ""
        text = header_text(pieces, {**(metadata or {}), **digest_entries(hash_keys, digest)})
        check_header(text, self._path)
        with self.place.explained():
            # Where the file is small, what is left of the room would be much of it.
            if not 0 <= self._room - len(text) <= self._size // _SLACK + ALIGNMENT:
                self._move_data(len(text))
            self._file.seek(0)
            write_all(self._file, memoryview(framed(text, self._room)))
            os.fsync(self._file.fileno())
            self._file.close()
        return Written(self._path, 8 + self._room + self._size, digest, len(pieces))

    def _fill(self, begin: int, size: int) -> None:
        with self._turn:
            self._filled.add(begin, begin + size)

    def _check_filled(self) -> None:
        reach = self._filled.reach
        for key, start in self._starts.items():
            piece = self._pieces[key]
            if start + piece.size > reach:
                number = (reach - start) * 8 // DTYPE_BITS[piece.dtype]
                raise WriteError(
                    f"not all of it was written: of `{key}` number {number} is the first missing",
                    path=self._path,
                )

    def _append(self, data: memoryview) -> None:
        for start in range(0, len(data), PART):
            part = data[start : start + PART]
            if self._hash:
                self._hash.update(part)
            with self.place.explained():
                write_all(self._file, part)
        self._size += len(data)

    def _move_data(self, room: int) -> None:
        """Copy the data behind room of another size."""
        old, data_start = self._file, 8 + self._room
        self._room = aligned(room)
        self._file = self.place.open()
        with old:
            old.seek(data_start)
            self._file.seek(8 + self._room)
            shutil.copyfileobj(old, self._file, 1 << 20)


def save(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    hash_keys: Sequence[str] = (),
    replace: bool = True,
) -> Written:
    """Write tensors that are all in memory, with no room to spare in the header.

    Args:
        path: The output.
        tensors: By key, in the order in which they are written.
        metadata: Strings by strings.
        hash_keys: Metadata keys that get the SHA-256 of the data section.
        replace: Whether a file that is there may be replaced; see `Place`.

    Raises:
        ArgumentError: the format cannot hold a dtype or a name, or the name is taken.
        WriteError: the file could not be written.
    """
    pieces = file_order(piece_of(key, one.dtype, one.shape) for key, one in tensors.items())
    blank = digest_entries(hash_keys, "0" * hashlib.sha256().digest_size * 2)
    room = len(header_text(pieces, {**(metadata or {}), **blank}))
    with SafetensorsWriter(path, header_room=room, replace=replace) as writer:
        for key, tensor in tensors.items():
            writer.write(key, tensor)
        return writer.finish(metadata, hash_keys=hash_keys)
