"""From a path to a `TensorSource`, whatever is there."""

from __future__ import annotations

from pathlib import Path

from .base import FileSource, is_folder
from .quantised.source import decoded
from .reading.folder import governed, open_folder
from .reading.renamed import modernised
from .reading.sharded import open_sharded
from .reading.single import open_file


def open_source(path: str | Path) -> FileSource:
    """Open what a path names: a file of tensors, an index of shards, or a folder of them.

    Weights that are stored with scales are decoded as they are read; see docs/quantised.md. An adapter
    with names that only one program knew has those of today; see `RenamedSource`. One of PEFT has the
    configuration that lies beside it, opened as a file or as its folder.

    Returns:
        A source to close, or to use in a `with` statement; its `paths` are the files it reads.

    Raises:
        ArgumentError: there is nothing, or it may not be read; names the nearest that exists.
        FormatError: it is damaged, hostile, or of no kind that is read here.
    """
    place = Path(path)
    if is_folder(place):
        return open_folder(path)
    if place.suffix.lower() == ".json":
        return decoded(open_sharded(path))
    return governed(modernised(decoded(open_file(path))))


def read_metadata(path: str | Path) -> dict[str, str]:
    """The string map of a file, exactly as it is stored; of shards and folders, what all of them say.

    Args:
        path: As for `open_source`.

    Raises:
        ArgumentError: there is nothing, or it may not be read; names the nearest that exists.
        FormatError: it is damaged, hostile, or of no kind that is read here.
    """
    place = Path(path)
    several = is_folder(place) or place.suffix.lower() == ".json"
    with open_source(path) if several else open_file(path) as source:
        return dict(source.metadata)
