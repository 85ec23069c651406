"""Several open files as one source: the shards of a model, the components of a folder."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..base import FileSource, stamp


class JoinedSource(FileSource):
    """A `TensorSource` over other sources, each key routed to one of them.

    Args:
        path: What the user named: an index file or a folder.
        routes: The source and its own key behind each key, in reading order.
        paths: Files that belong to it besides those of the sources, such as the index.
        metadata: Entries that stand in such files.
    """

    def __init__(
        self,
        path: str | Path,
        routes: Mapping[str, tuple[FileSource, str]],
        paths: tuple[Path, ...] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._routes = dict(routes)
        self._sources = list(dict.fromkeys(source for source, _ in self._routes.values()))
        self.reads_parts = all(source.reads_parts for source in self._sources)
        self.name = str(path)
        self.paths = (*paths, *(path for source in self._sources for path in source.paths))
        self.stamps = {path: stamp(path) for path in paths}
        for source in self._sources:
            self.stamps |= source.stamps
        held = {k: v for source in self._sources for k, v in source.metadata.items()}
        self.metadata = {**held, **(metadata or {})}

    def keys(self) -> list[str]:
        """All tensor names, source by source."""
        return list(self._routes)

    def parts(self) -> list[list[str]]:
        """All tensor names, source by source."""
        parts: dict[FileSource, list[str]] = {source: [] for source in self._sources}
        for key, (source, _) in self._routes.items():
            parts[source].append(key)
        return list(parts.values())

    def members(self) -> list[tuple[FileSource, dict[str, str]]]:
        """Each source, with the names here of its tensors, by their names there."""
        found: dict[FileSource, dict[str, str]] = {source: {} for source in self._sources}
        for key, (source, inner) in self._routes.items():
            found[source][inner] = key
        return list(found.items())

    def own_key(self, key: str) -> str:
        """The tensor's name in the file itself, without what a folder puts in front."""
        source, inner = self._routes[key]
        return source.own_key(inner)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor, from its header."""
        source, inner = self._routes[key]
        return source.shape(inner)

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor as stored."""
        source, inner = self._routes[key]
        return source.dtype(inner)

    def dtype_name(self, key: str) -> str:
        """Dtype of one tensor as its header names it."""
        source, inner = self._routes[key]
        return source.dtype_name(inner)

    def tensor(self, key: str) -> Tensor:
        """Read one tensor into fresh CPU memory, in its stored dtype."""
        source, inner = self._routes[key]
        return source.tensor(inner)

    def read_into(self, key: str, start: int, out: Tensor) -> None:
        """Read part of a tensor into memory that is there; see `FileSource.read_into`."""
        source, inner = self._routes[key]
        source.read_into(inner, start, out)

    def copy_into(self, key: str, file: io.FileIO, offset: int) -> None:
        """Write the bytes of a tensor into an open file; see `FileSource.copy_into`."""
        source, inner = self._routes[key]
        source.copy_into(inner, file, offset)

    def close(self) -> None:
        """Close every source."""
        for source in self._sources:
            source.close()
