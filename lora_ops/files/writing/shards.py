"""Writing a model in several files with an index: Hugging Face's `*.safetensors.index.json`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from ...errors import WriteError
from ...source import TensorSource
from ..base import FileSource
from .base import FileWriter, Written
from .placed import PlacedWriter, Row
from .publish import Place, publish_all, write_all
from .writer import SafetensorsWriter

if TYPE_CHECKING:
    from typing_extensions import Self

#: What the name of an index ends in.
INDEX = ".safetensors.index.json"


def partition(source: FileSource, dtypes: Mapping[str, torch.dtype], limit: int) -> list[list[str]]:
    """Sort keys into shards: as the source's own, else one after another up to a limit.

    Args:
        source: Where the keys and shapes are from.
        dtypes: Of what is written, by key, in writing order.
        limit: Bytes of data in one shard; a tensor that is larger has one of its own.
    """
    if len(source.parts()) > 1:
        return [list(part) for part in source.parts()]
    shards: list[list[str]] = [[]]
    size = 0
    for key, dtype in dtypes.items():
        more = torch.Size(source.shape(key)).numel() * dtype.itemsize
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


Writer = TypeVar("Writer", bound=FileWriter)


class _Shards(Generic[Writer]):
    """Writers of the shards of one index, which get their names together.

    Args:
        index: The output, ending in `.safetensors.index.json`.
        writers: One a shard.
        shards: The keys of each shard.
        replace: Whether files that are there may be replaced; see `Place`.
    """

    def __init__(
        self,
        index: Path,
        writers: Sequence[Writer],
        shards: Sequence[Sequence[str]],
        *,
        replace: bool,
    ) -> None:
        self._index = index
        self._replace = replace
        self._writers = writers
        self._shard_of = {key: number for number, keys in enumerate(shards) for key in keys}
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
            data = sum(shard.data_size for shard in written)
            text = self._index_text(data).encode()
            with self._place.explained(), self._place.open() as file:
                write_all(file, memoryview(text))
                os.fsync(file.fileno())
        publish_all([*(writer.place for writer in self._writers), self._place])
        size = len(text) + sum(shard.size for shard in written)
        return Written(self._index, size, "", sum(shard.tensors for shard in written), data)

    def _index_text(self, size: int) -> str:
        names = [writer.place.path.name for writer in self._writers]
        return json.dumps(
            {
                "metadata": {"total_size": size},
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


class ShardsWriter(_Shards[SafetensorsWriter]):
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
        writers = [
            SafetensorsWriter(path, header_room=header_room, hashed=hashed, replace=replace)
            for path in shard_paths(index, len(shards))
        ]
        super().__init__(index, writers, shards, replace=replace)

    def write(self, key: str, tensor: Tensor) -> None:
        """Add one tensor to its shard; see `SafetensorsWriter.write`.

        Raises:
            WriteError: the file could not be written.
        """
        with self._named():
            self._writers[self._shard_of[key]].write(key, tensor)


class PlacedShardsWriter(_Shards[PlacedWriter]):
    """Shards and their index, in pieces, in any order, from several threads; see `PlacedWriter`.

    Every file is a hidden sibling until `finish` gives all of them their names, the index last;
    without `finish` nothing stays.

    Args:
        index: The output, ending in `.safetensors.index.json`.
        shards: The tensors of each shard, in the order of their data.
        metadata: About as long as that of `finish`, which every shard gets.
        hashed: Whether the data of each shard is hashed.
        replace: Whether files that are there may be replaced; see `Place`.

    Raises:
        ArgumentError: the format cannot hold a dtype or a name; by `with`: a name is taken.
        WriteError: by `with`, and by whatever writes: a file could not be written.
        ValueError: two tensors have one name.
    """

    def __init__(
        self,
        index: Path,
        shards: Sequence[Sequence[Row]],
        *,
        metadata: Mapping[str, str] | None = None,
        hashed: bool = True,
        replace: bool = True,
    ) -> None:
        writers = [
            PlacedWriter(path, rows, metadata=metadata, hashed=hashed, replace=replace)
            for path, rows in zip(shard_paths(index, len(shards)), shards, strict=True)
        ]
        keys = [[key for key, _, _ in rows] for rows in shards]
        if len(set(itertools.chain(*keys))) < sum(map(len, keys)):
            raise ValueError("a tensor cannot be in two shards")
        super().__init__(index, writers, keys, replace=replace)

    def write(self, key: str, tensor: Tensor) -> None:
        """Write a whole tensor; see `PlacedWriter.write_at`."""
        self.write_at(key, 0, tensor)

    def write_at(self, key: str, start: int, numbers: Tensor) -> None:
        """Write a run of a tensor's numbers; see `PlacedWriter.write_at`."""
        with self._named():
            self._writers[self._shard_of[key]].write_at(key, start, numbers)

    def copy(self, key: str, source: TensorSource, own: str | None = None) -> None:
        """Write a whole tensor as a source has it; see `PlacedWriter.copy`."""
        with self._named():
            self._writers[self._shard_of[key]].copy(key, source, own)
