"""A file that stays in memory: what a graph hands on where the command line writes to disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base import FileSource
from ..dtypes import dtype_name
from ..header import check_name, render_header
from .base import Written
from .writer import SafetensorsWriter

if TYPE_CHECKING:
    from typing_extensions import Self


class MemoryFile(FileSource):
    """Tensors and a string map under a name: read like an opened file, written where a path may be.

    The tensors are handed out as they are, not copied; operations never write into them.

    Attributes:
        name: What messages call it.
        tensors: By key.
        metadata: The string map.
        sha256: Of the file that it was read from; empty if it is no longer that, or never was.
        paths: None.
    """

    def __init__(
        self,
        name: str,
        tensors: Mapping[str, Tensor] | None = None,
        metadata: Mapping[str, str] | None = None,
        sha256: str = "",
    ) -> None:
        self.name = name
        self.tensors: Mapping[str, Tensor] = dict(tensors or {})
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.sha256 = sha256
        self.paths: tuple[Path, ...] = ()

    @property
    def stem(self) -> str:
        """Its title: the name without folders and suffix."""
        return Path(self.name).stem

    def keys(self) -> Sequence[str]:
        """All tensor names, in the order in which they were written."""
        return list(self.tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return tuple(self.tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor."""
        return self.tensors[key].dtype

    def tensor(self, key: str) -> Tensor:
        """The tensor itself, not a copy."""
        return self.tensors[key]

    def has_ranges(self, key: str) -> bool:
        """Always: it is in memory."""
        return True

    def close(self) -> None:
        """Nothing to let go of."""


#: Where a result goes: a path on disk, or a file in memory, which is filled.
Output = Path | MemoryFile


class MemoryWriter:
    """Fills a `MemoryFile`, with the methods of `SafetensorsWriter`: all at once, by `finish`."""

    def __init__(self, file: MemoryFile) -> None:
        self._file = file
        self._tensors: dict[str, Tensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing was taken that would have to be given back."""

    def write(self, key: str, tensor: Tensor) -> None:
        """Add one tensor, which moves to the CPU and must not change afterwards.

        Raises:
            ArgumentError: a file could not hold its name.
            ValueError: the key was written before.
        """
        if key in self._tensors:
            raise ValueError(f"`{key}` cannot be written a second time")
        check_name(key)
        self._tensors[key] = tensor.detach().cpu().contiguous()

    def finish(
        self, metadata: Mapping[str, str] | None = None, *, hash_keys: Sequence[str] = ()
    ) -> Written:
        """Complete the file.

        Args:
            metadata: Strings by strings.
            hash_keys: Left out of the metadata: whoever saves the file fills them in.

        Returns:
            What a file of it would be; its size, without those hashes.
        """
        self._file.tensors, self._file.metadata = self._tensors, dict(metadata or {})
        rows = [
            (key, dtype_name(t.dtype), tuple(t.shape), t.numel() * t.element_size())
            for key, t in self._tensors.items()
        ]
        header = len(render_header(rows, self._file.metadata))
        data = sum(row[3] for row in rows)
        return Written(Path(self._file.name), 8 + header + data, "", len(rows), data)


def writer_of(
    output: Output, *, header_room: int, replace: bool
) -> SafetensorsWriter | MemoryWriter:
    """Return what takes the tensors of a result.

    Args:
        output: Where to.
        header_room: Bytes to keep for the header of a file on disk.
        replace: Whether a file that is there on disk may be replaced.
    """
    if isinstance(output, MemoryFile):
        return MemoryWriter(output)
    return SafetensorsWriter(output, header_room=header_room, replace=replace)
