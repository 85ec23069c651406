"""The one way of results into a file: hashed inputs, a streamed body, the record of it at the end."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast

from torch import Tensor

from ..errors import LoraOpsError
from ..files import FileSource, SafetensorsWriter, Written
from ..report import LayerReport, Report, Rounding, Skip, Weighted
from ..source import TensorSource
from .inputs import Input, hashed, hashed_once
from .job import Outcome
from .packed import Json, by_name, pack, unpack

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

    def asked(self) -> Mapping[str, str]:
        """Return what the file will say of what was asked for, as far as it is known before."""
        return {}

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

    #: What results and what is said of them may be made of, by name, where they come back from a part.
    classes: Mapping[str, type[object]] = by_name(LayerReport, Skip, Rounding, Weighted)

    def part(self, path: Path, names: Sequence[str]) -> AbstractContextManager[Writer]:
        """Return the file of a part of the results.

        Args:
            path: Where to.
            names: Of the jobs.
        """
        del names
        return SafetensorsWriter(path, hashed=False)

    def keep(self, outcome: Outcome[Value], writer: Writer) -> Json:
        """Write a result into the file of its part, and return what else is to be known of it."""
        tensors: dict[str, Tensor] = {}
        told = pack((outcome.value, outcome.reports), tensors, outcome.name)
        for key, tensor in tensors.items():
            writer.write(key, tensor)
        return told

    def recall(self, name: str, told: Json, part: FileSource) -> Outcome[Value]:
        """Return a result again.

        Args:
            name: Of its job.
            told: From `keep`.
            part: The file of its part.
        """
        value = unpack(cast("list[Json]", told)[0], part.tensor, self.classes)
        return Outcome(name, cast("Value | None", value), self.said(told))

    def said(self, told: Json) -> tuple[LayerReport | Skip, ...]:
        """Return what is to be said of a result, from `keep`."""
        reports = unpack(cast("list[Json]", told)[1], _no_tensor, self.classes)
        if not isinstance(reports, tuple):
            raise TypeError(f"{reports!r} is no list of reports")
        found = cast("tuple[object, ...]", reports)
        if not all(isinstance(one, LayerReport | Skip) for one in found):
            raise TypeError("these are no reports")
        return cast("tuple[LayerReport | Skip, ...]", found)

    def notes(self, inputs: Sequence[Input]) -> Sequence[str]:
        """Return what is worth a sentence of the inputs, once they are known.

        Args:
            inputs: The record of `sources`.
        """
        del inputs
        return ()


def write(
    sink: Sink[Value],
    outcomes: Iterable[Outcome[Value]],
    *,
    started: float,
    known: Mapping[Path, str] | None = None,
) -> Report:
    """Write results as they come, and return the report of what was written.

    Args:
        sink: The file.
        outcomes: The results, of `stream`.
        started: When the work began, of `time.perf_counter`: reading what it needs counts.
        known: Hashes of inputs that need not be taken.

    Raises:
        MismatchError: There is nothing in the file; none is written.
        FormatError: An input changed while it was read; no file is written.
        WriteError: The disk is full, or the like; no file is written.
    """
    with (
        hashed(sink.sources, sink.others, known) as inputs,
        sink.writer() as writer,
        ended(outcomes) as results,
    ):
        for outcome in results:
            _take(sink, writer, outcome)
        return _finish(sink, writer, inputs, started)


def write_each(
    sinks: Sequence[Sink[Value]],
    outcomes: Iterable[Sequence[tuple[int, Outcome[Value] | LoraOpsError]]],
    *,
    started: float,
) -> list[Report | LoraOpsError]:
    """Write the results of several files side by side; what goes wrong with one does not stop the rest.

    Each file is complete under its name or not there at all. They get their names at the end, one after
    another: what ends the work before leaves none, and later leaves those that are complete.

    Args:
        sinks: The files. What several are made from is hashed once.
        outcomes: The results as they come: of which files, by number, and what each is.
        started: When the work began, of `time.perf_counter`.

    Returns:
        For each file its report; or why there is none.
    """
    sources = [one for sink in sinks for one in sink.sources]
    others = [one for sink in sinks for one in sink.others]
    errors: dict[int, LoraOpsError] = {}
    reports: dict[int, Report] = {}
    with hashed_once(sources, others) as inputs, ExitStack() as stack, ended(outcomes) as results:
        opened = [stack.enter_context(ExitStack()) for _ in sinks]
        writers: dict[int, Writer] = {}

        def attempt(number: int, step: Callable[[], None]) -> None:
            """Go one step with a file; where that fails, what is there of it goes at once."""
            try:
                step()
            except LoraOpsError as error:
                errors[number] = error
                opened[number].__exit__(type(error), error, error.__traceback__)

        def enter(number: int) -> None:
            writers[number] = opened[number].enter_context(sinks[number].writer())

        def take(number: int, outcome: Outcome[Value] | LoraOpsError) -> None:
            if isinstance(outcome, LoraOpsError):
                raise outcome
            _take(sinks[number], writers[number], outcome)

        def finish(number: int) -> None:
            sink = sinks[number]
            record = partial(inputs, sink.sources, sink.others)
            reports[number] = _finish(sink, writers[number], record, started)
            opened[number].close()  # a folder gets its name here

        for number in range(len(sinks)):
            attempt(number, partial(enter, number))
        for made in results:
            for number, outcome in made:
                if number not in errors:
                    attempt(number, partial(take, number, outcome))
            if len(errors) == len(sinks):
                break
        for number in range(len(sinks)):
            if number not in errors:
                attempt(number, partial(finish, number))
    return [errors[number] if number in errors else reports[number] for number in range(len(sinks))]


def _no_tensor(key: str) -> Tensor:
    raise KeyError(key)


def _take(sink: Sink[Value], writer: Writer, outcome: Outcome[Value]) -> None:
    for key, tensor in sink.tensors(outcome).items():
        writer.write(key, tensor)


def _finish(
    sink: Sink[Value], writer: Writer, inputs: Callable[[], list[Input]], started: float
) -> Report:
    """Write what comes after all results, and give the file its name."""
    for key, tensor in sink.rest().items():
        writer.write(key, tensor)
    report = sink.report()
    read = inputs()
    written = writer.finish(sink.metadata(read, report), hash_keys=sink.hash_keys)
    report = replace(report, notes=(*report.notes, *sink.notes(read)))
    return finished(report, read, started, written.size)


@contextmanager
def ended(results: Iterable[Result]) -> Generator[Iterable[Result], None, None]:
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
