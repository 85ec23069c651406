"""A file whose tensors go by other names than those in it."""

from __future__ import annotations

from ...errors import FormatError
from ..base import FileSource
from ..writing.memory import MemoryFile
from .legacy import Modern, modern
from .routed import RoutedSource


class RenamedSource(RoutedSource):
    """A `TensorSource` over another one, under the names that programs of today read.

    Attributes:
        original: The file under its own names.
    """

    def __init__(self, original: FileSource, names: Modern) -> None:
        self.original = original
        self.spelling = names.spelling
        self.name = original.name
        self.paths = original.paths
        self.stamps = original.stamps
        self.metadata = names.metadata
        self._names = dict(names.names)
        self._added = MemoryFile(original.name, names.added)

    def keys(self) -> list[str]:
        """All names, in the order in which their tensors lie in the file; those added come last."""
        return [*self._names, *self._added.keys()]

    def route(self, key: str) -> tuple[FileSource, str]:
        """The file and its own name of a tensor; what was added is in memory."""
        own = self._names.get(key)
        return (self._added, key) if own is None else (self.original, own)

    def close(self) -> None:
        """Close the file."""
        self.original.close()


def modernised(source: FileSource) -> FileSource:
    """Return the file under names of today; the source itself where it has them.

    Raises:
        FormatError: Its layers are numbered, and of no model that is known.
    """
    try:
        names = modern(source.keys(), source.shape, source.metadata)
    except FormatError as error:
        source.close()
        raise FormatError(str(error), path=source.name) from None
    return source if names is None else RenamedSource(source, names)
