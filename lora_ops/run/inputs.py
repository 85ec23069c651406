"""The record of what a result is made from: names, and hashes that are taken beside the work.

And the check that it was one thing all the while: a file that changes under a reader gives numbers
of neither of its states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TypeVar

from ..errors import LoraOpsError
from ..files import FileSource, Stamp, changed, false_hash, input_sha256, stamp
from ..files.hashes import known_sha256
from ..source import TensorSource
from .workers import in_background

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Input:
    """A file that went into the result.

    Attributes:
        name: File name, without folders.
        sha256: Of the file's bytes; empty where it was not taken.
        note: What is worth a sentence of it: that it is not what its own hash says.
    """

    name: str
    sha256: str = ""
    note: str = ""


_FALSE = (
    "{0} is not what it says it is: its `sshs_model_hash` is {1:.12}…, that of its data {2:.12}…; "
    "it was damaged, or changed by a program that kept the old hash"
)


def paths_of(*sources: TensorSource | None) -> list[Path]:
    """The files that are read; none of what is no file."""
    files = [one for one in sources if isinstance(one, FileSource)]
    return [path for file in files for path in file.paths]


def unhashed(source: TensorSource) -> Input:
    """The record of an input without its hash."""
    return Input(Path(source.name).name)


def placeholders(sources: Sequence[TensorSource]) -> list[Input]:
    """The records of inputs at their full length, before they are hashed.

    Each has a hash of its own, as records of one hash may be taken for one.
    """
    return [replace(unhashed(one), sha256=f"{number:064x}") for number, one in enumerate(sources)]


@contextlib.contextmanager
def hashed(
    sources: Sequence[TensorSource],
    others: Sequence[TensorSource | None] = (),
    known: Mapping[Path, str] | None = None,
) -> Generator[Callable[[], list[Input]], None, None]:
    """Give a function that waits for the hashes of all inputs, which cost the work no time.

    They are taken by threads of their own; what is not done when the `with` statement is left is not
    done any more. What is no file has no hash. Call it when all is read: it raises a `FormatError`
    if a file, also one of the others, is not what it was when it was opened.

    Args:
        sources: What is recorded.
        others: What else is read.
        known: Hashes of files that need not be taken.
    """
    with hashed_once(sources, others, known) as record:
        yield lambda: record(sources, others)


@contextlib.contextmanager
def hashed_once(
    sources: Sequence[TensorSource],
    others: Sequence[TensorSource | None] = (),
    known: Mapping[Path, str] | None = None,
) -> Generator[
    Callable[[Sequence[TensorSource], Sequence[TensorSource | None]], list[Input]], None, None
]:
    """Give a function that waits, as `hashed` does, and returns the hashes of some of the inputs.

    What several results are made from is hashed once, and an input that cannot be, or that changed,
    is an error of those results alone that are made from it.

    Args:
        sources: What is recorded; one that is named twice is hashed once.
        others: What else is read.
        known: Hashes of files that need not be taken.
    """
    stop = Event()
    stamps = _stamps([*sources, *others])

    def record(source: TensorSource) -> Input:
        sha256 = input_sha256(source, stop, known) if isinstance(source, FileSource) else ""
        return replace(unhashed(source), sha256=sha256)

    def note(source: TensorSource) -> str:
        false = false_hash(source, stop) if isinstance(source, FileSource) else None
        return "" if false is None else _FALSE.format(Path(source.name).name, *false)

    distinct = list({id(one): one for one in sources}.values())
    result, wait = in_background(lambda: [_attempt(record, one) for one in distinct])
    notes, wait_too = in_background(lambda: [_attempt(note, one) for one in distinct])
    taken: dict[int, tuple[Input | LoraOpsError, str | LoraOpsError]] | None = None

    def checked(some: Sequence[TensorSource], others: Sequence[TensorSource | None]) -> list[Input]:
        nonlocal taken
        if taken is None:
            taken = dict(zip(map(id, distinct), zip(result(), notes(), strict=True), strict=True))
        # What changed may not be readable any more: the change is what to say.
        _check({path: stamps[path] for path in paths_of(*some, *others)})
        found: list[Input] = []
        for input_, said in (taken[id(one)] for one in some):
            if isinstance(input_, LoraOpsError):
                raise input_
            if isinstance(said, LoraOpsError):
                raise said
            found.append(replace(input_, note=said))
        return found

    try:
        yield checked
    finally:
        stop.set()
        wait()
        wait_too()


@contextlib.contextmanager
def hashes_of(paths: Sequence[Path]) -> Generator[Callable[[], dict[Path, str]], None, None]:
    """Give a function that waits for the hashes of some files, taken by a thread of their own.

    Args:
        paths: The files; what is not done when the `with` statement is left is not done any more.
    """
    stop = Event()
    result, wait = in_background(lambda: {path: known_sha256(path, stop) for path in paths})
    try:
        yield result
    finally:
        stop.set()
        wait()


def _attempt(take: Callable[[TensorSource], Result], source: TensorSource) -> Result | LoraOpsError:
    """What is found of an input; or the error, for those who ask for it."""
    try:
        return take(source)
    except LoraOpsError as error:
        return error


@contextlib.contextmanager
def unchanged(*sources: TensorSource | None) -> Generator[None, None, None]:
    """Raise, at the end of work that reads files, where one is not what it was when it was opened.

    Raises:
        FormatError: One has another size, time of its last change, or inode; or it is gone.
    """
    stamps = _stamps(sources)
    try:
        yield
    except LoraOpsError:
        _check(stamps)  # what changed may not be readable any more: the change is what to say
        raise
    _check(stamps)


def _stamps(sources: Iterable[TensorSource | None]) -> dict[Path, Stamp | None]:
    """How the files of all sources were when they were opened; as they are, where nobody looked."""
    files = [one for one in sources if isinstance(one, FileSource)]
    return {
        path: one.stamps[path] if path in one.stamps else stamp(path)
        for one in files
        for path in one.paths
    }


def _check(stamps: Mapping[Path, Stamp | None]) -> None:
    for path, before in stamps.items():
        if stamp(path) != before:
            raise changed(path)
