"""The record of what a result is made from: names, and hashes that are taken beside the work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

from .files import FileSource, input_sha256
from .metadata import Input
from .parallel import in_background
from .source import TensorSource


def paths_of(*sources: TensorSource | None) -> list[Path]:
    """The files that are read; none of what is no file."""
    files = [one for one in sources if isinstance(one, FileSource)]
    return [path for file in files for path in file.paths]


def unhashed(source: TensorSource) -> Input:
    """The record of an input without its hash."""
    return Input(Path(source.name).name)


@contextlib.contextmanager
def hashed(sources: Sequence[TensorSource]) -> Generator[Callable[[], list[Input]], None, None]:
    """Give a function that waits for the hashes of all inputs, which cost the work no time.

    They are taken by a thread of its own; what is not done when the `with` statement is left is not
    done any more. What is no file has no hash.
    """
    stop = Event()

    def record(source: TensorSource) -> Input:
        sha256 = input_sha256(source, stop) if isinstance(source, FileSource) else ""
        return replace(unhashed(source), sha256=sha256)

    result, wait = in_background(lambda: [record(source) for source in sources])
    try:
        yield result
    finally:
        stop.set()
        wait()
