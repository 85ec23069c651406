"""Several open files as one source: the shards of a model, the components of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..base import FileSource, stamp
from .routed import RoutedSource


class JoinedSource(RoutedSource):
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

    def route(self, key: str) -> tuple[FileSource, str]:
        """The source behind a key, and its own key for it."""
        return self._routes[key]

    def close(self) -> None:
        """Close every source."""
        for source in self._sources:
            source.close()
