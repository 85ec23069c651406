"""Writing a model in several files with an index: Hugging Face's `*.safetensors.index.json`."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import WriteError
from ..base import FileSource
from .publish import Place, publish_all, write_all
from .writer import SafetensorsWriter, Written

if TYPE_CHECKING:
    from typing_extensions import Self

#: What the name of an index ends in.
INDEX = ".safetensors.index.json"


def partition(source: FileSource, sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Sort keys into shards: as the source's own, else one after another up to a limit.

    Args:
        source: Where the keys are from.
        sizes: Bytes of what is written, by key, in writing order.
        limit: Bytes of data in one shard; a tensor that is larger has one of its own.
    """
    if len(source.parts()) > 1:
        return [list(part) for part in source.parts()]
    shards: list[list[str]] = [[]]
    size = 0
    for key, more in sizes.items():
        if shards[-1] and size + more > limit:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += more
    return shards


def shard_paths(index: Path, count: int) -> list[Path]:
    """Names beside the index, after its stem: `model-00001-of-00003.safetensors`."""
    stem = index.name[: -len(INDEX)]
    return [
        index.with_name(f"{stem}-{number:05}-of-{count:05}.safetensors")
        for number in range(1, count + 1)
    ]


class ShardsWriter:
    """Shards and their index, one tensor at a time; use it in a `with` statement.

    Every file is a hidden sibling until `finish` gives all of them their names, the index last;
    without `finish` nothing stays.

    Args:
        index: The output, ending in `.safetensors.index.json`.
        shards: The keys of each shard.
        header_room: Bytes to keep for the header of each shard.
        hashed: See `SafetensorsWriter`.
        replace: Whether files that are there may be replaced; see `Place`.

    Raises:
        ArgumentError: by `with`: a name is taken.
        WriteError: by `with`, `write` and `finish`: a file could not be written.
    """

    def __init__(
        self,
        index: Path,
        shards: Sequence[Sequence[str]],
        *,
        header_room: int = 1 << 16,
        hashed: bool = True,
        replace: bool = True,
    ) -> None:
        self._index = index
        self._replace = replace
        self._paths = shard_paths(index, len(shards))
        self._writers = [
            SafetensorsWriter(path, header_room=header_room, hashed=hashed, replace=replace)
            for path in self._paths
        ]
        self._shard_of = {key: number for number, keys in enumerate(shards) for key in keys}
        self._size = 0
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._named(), contextlib.ExitStack() as stack:
            self._place = Place(self._index, replace=self._replace)
            stack.callback(self._place.clean)
            for writer in self._writers:
                stack.enter_context(writer)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def write(self, key: str, tensor: Tensor) -> None:
        """Add one tensor to its shard; see `SafetensorsWriter.write`.

        Raises:
            WriteError: the file could not be written.
        """
        with self._named():
            self._writers[self._shard_of[key]].write(key, tensor)
        self._size += tensor.numel() * tensor.element_size()

    def lay_out(self, rows: Iterable[tuple[str, torch.dtype, Sequence[int]]]) -> None:
        """Give all tensors their places; see `SafetensorsWriter.lay_out`."""
        shards: list[list[tuple[str, torch.dtype, Sequence[int]]]] = [[] for _ in self._writers]
        for key, dtype, shape in rows:
            shards[self._shard_of[key]].append((key, dtype, shape))
            self._size += math.prod(shape) * dtype.itemsize
        for writer, shard in zip(self._writers, shards, strict=True):
            writer.lay_out(shard)

    def write_at(self, key: str, start: int, piece: Tensor) -> None:
        """Fill part of a place; see `SafetensorsWriter.write_at`."""
        with self._named():
            self._writers[self._shard_of[key]].write_at(key, start, piece)

    def copy(self, key: str, source: FileSource, own: str) -> None:
        """Fill a place with another file's tensor; see `SafetensorsWriter.copy`."""
        with self._named():
            self._writers[self._shard_of[key]].copy(key, source, own)

    def finish(
        self, metadata: Mapping[str, str] | None = None, *, hash_keys: Sequence[str] = ()
    ) -> Written:
        """Complete all shards, then name them, then write the index.

        Args:
            metadata: Of every shard, so that each says where it is from.
            hash_keys: Metadata keys that get the SHA-256 of the shard's own data section.

        Returns:
            The index, with the size of all files and no hash.

        Raises:
            WriteError: a file could not be written.
        """
        with self._named():
            written = [writer.complete(metadata, hash_keys=hash_keys) for writer in self._writers]
            text = self._index_text().encode()
            with self._place.explained(), self._place.open() as file:
                write_all(file, memoryview(text))
                os.fsync(file.fileno())
        publish_all([*(writer.place for writer in self._writers), self._place])
        size = len(text) + sum(shard.size for shard in written)
        return Written(self._index, size, "", sum(shard.tensors for shard in written))

    def _index_text(self) -> str:
        names = [path.name for path in self._paths]
        return json.dumps(
            {
                "metadata": {"total_size": self._size},
                "weight_map": {key: names[number] for key, number in self._shard_of.items()},
            },
            indent=2,
        )

    @contextlib.contextmanager
    def _named(self) -> Generator[None, None, None]:
        """Errors name the output, not one of its shards."""
        try:
            yield
        except WriteError as error:
            error.path = self._index
            raise
