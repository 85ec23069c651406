"""The one way of results into a file: hashed inputs, a streamed body, the record of it at the end."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from ..files import Written
from ..report import Report
from ..source import TensorSource
from .inputs import Input, hashed
from .job import Outcome

Value = TypeVar("Value")
Result = TypeVar("Result")


class Writer(Protocol):
    """A file that takes one tensor at a time: `SafetensorsWriter` and its like."""

    def write(self, key: str, tensor: Tensor) -> None:
        """Add one tensor."""
        ...

    def finish(
        self, metadata: Mapping[str, str] | None = None, *, hash_keys: Sequence[str] = ()
    ) -> Written:
        """Complete the file, and give it its name."""
        ...


class Sink(ABC, Generic[Value]):
    """What an operation's results become: what is in the file, and what is said of it.

    One is used for one file: it gathers what it is given.

    Attributes:
        sources: What the result is made from, and recorded as such, with hashes.
        others: What else is read: that it does not change meanwhile is checked.
        hash_keys: Metadata keys that get the SHA-256 of the data section.
    """

    sources: Sequence[TensorSource]
    others: Sequence[TensorSource | None] = ()
    hash_keys: Sequence[str] = ()

    @abstractmethod
    def writer(self) -> AbstractContextManager[Writer]:
        """Return the file, with room for its header; nothing is written before it is entered."""

    @abstractmethod
    def tensors(self, outcome: Outcome[Value]) -> Mapping[str, Tensor]:
        """Return what is written of a result, by key, and remember what is to be said of it."""

    def rest(self) -> Mapping[str, Tensor]:
        """Return what is written after all results, by key."""
        return {}

    @abstractmethod
    def report(self) -> Report:
        """Return what is to be said of all results.

        Raises:
            MismatchError: There is nothing in the file.
        """

    @abstractmethod
    def metadata(self, inputs: Sequence[Input], report: Report) -> Mapping[str, str]:
        """Return the string map of the file.

        Args:
            inputs: The record of `sources`.
            report: From `report`.
        """

    def notes(self, inputs: Sequence[Input]) -> Sequence[str]:
        """Return what is worth a sentence of the inputs, once they are known.

        Args:
            inputs: The record of `sources`.
        """
        del inputs
        return ()


def write(sink: Sink[Value], outcomes: Iterable[Outcome[Value]], *, started: float) -> Report:
    """Write results as they come, and return the report of what was written.

    Args:
        sink: The file.
        outcomes: The results, of `stream`.
        started: When the work began, of `time.perf_counter`: reading what it needs counts.

    Raises:
        MismatchError: There is nothing in the file; none is written.
        FormatError: An input changed while it was read; no file is written.
        WriteError: The disk is full, or the like; no file is written.
    """
    with (
        hashed(sink.sources, sink.others) as inputs,
        sink.writer() as writer,
        _ended(outcomes) as results,
    ):
        for outcome in results:
            for key, tensor in sink.tensors(outcome).items():
                writer.write(key, tensor)
        for key, tensor in sink.rest().items():
            writer.write(key, tensor)
        report = sink.report()
        read = inputs()
        written = writer.finish(sink.metadata(read, report), hash_keys=sink.hash_keys)
    report = replace(report, notes=(*report.notes, *sink.notes(read)))
    return finished(report, read, started, written.size)


@contextmanager
def _ended(results: Iterable[Result]) -> Generator[Iterable[Result], None, None]:
    """See to it that nobody works on them any more at the end: a job may write into the file."""
    try:
        yield results
    finally:
        if isinstance(results, Generator):
            results.close()


def finished(report: Report, inputs: Sequence[Input], started: float, size: int) -> Report:
    """Return the report of what was written, with what its inputs are worth a sentence for.

    Args:
        report: Of the results.
        inputs: What it was made from.
        started: When the work began, of `time.perf_counter`.
        size: Of the file, in bytes.
    """
    notes = (*report.notes, *(one.note for one in inputs if one.note))
    return replace(report, notes=notes, seconds=time.perf_counter() - started, size=size)
