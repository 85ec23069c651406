"""Writing safetensors files tensor by tensor: streamed, and hashed on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..dtypes import memory_of
from ..positional import PART
from .base import FileWriter, Piece, Written, file_order, header_text, piece_of
from .publish import write_all


class SafetensorsWriter(FileWriter):
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
        super().__init__(path, header_room, replace=replace)
        self._pieces: dict[str, Piece] = {}
        self._waiting: dict[str, bytes] = {}
        self._hash = hashlib.sha256() if hashed else None

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

    def _settle(self) -> tuple[list[Piece], str]:
        pieces = file_order(self._pieces.values())
        for piece in pieces[len(pieces) - len(self._waiting) :]:
            self._append(memoryview(self._waiting.pop(piece.key)))
        return pieces, self._hash.hexdigest() if self._hash else ""

    def _append(self, data: memoryview) -> None:
        for start in range(0, len(data), PART):
            part = data[start : start + PART]
            if self._hash:
                self._hash.update(part)
            with self.place.explained():
                write_all(self._file, part)


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
    pieces = file_order(
        piece_of(key, tensor.dtype, tensor.shape) for key, tensor in tensors.items()
    )
    blank = dict.fromkeys(hash_keys, "0" * hashlib.sha256().digest_size * 2)
    room = len(header_text(pieces, {**(metadata or {}), **blank}))
    with SafetensorsWriter(path, header_room=room, replace=replace) as writer:
        for key, tensor in tensors.items():
            writer.write(key, tensor)
        return writer.finish(metadata, hash_keys=hash_keys)
