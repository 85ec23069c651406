"""The parts of some work, found again, and joined into its result."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import ArgumentError, MismatchError, MissingPartsError
from ..files import SafetensorsFile, explained, read_errors, unfinished_in, write_whole
from ..report import Report, counted
from ..run.devices import Placement
from ..run.job import Job, Outcome
from ..run.output import write
from .document import Document
from .manifest import PLAN, Manifest, manifests, parts_folder, shares
from .whole import Whole

Task = TypeVar("Task")
Value = TypeVar("Value")

# There from when the result gets its names until the parts are gone; it holds the hash of the plan.
_PUBLISHING = "publishing"


def is_publishing(output: Path) -> bool:
    """Whether a run that was killed was about to give a result this name: what has it is its own."""
    return (parts_folder(output) / _PUBLISHING).exists()


def plan_of_finished(folder: Path) -> str | None:
    """The hash of the plan whose result has its names, and whose parts were going; None: there is none."""
    marker = folder / _PUBLISHING
    with read_errors(marker):
        is_going = marker.exists() and not (folder / PLAN).exists()
        return marker.read_text("utf-8", "replace") if is_going else None


def found_parts(folder: Path, document: Document, *, hashed: bool) -> list[Manifest]:
    """The parts that are there, and sound."""
    found: list[Manifest] = []
    for one in manifests(folder):
        if one.plan != document.hash:
            raise MismatchError(
                f"part {one.number} of {one.count} is of another plan; remove it, and make it again",
                path=folder / one.file,
            )
        if one.is_sound(folder, hashed=hashed):
            found.append(one)
    return found


def places(found: Sequence[Manifest], folder: Path) -> dict[str, Manifest]:
    """The part of each item; refuse one that is in two."""
    where: dict[str, Manifest] = {}
    for one in found:
        for name in one.items:
            other = where.setdefault(name, one)
            if other is not one:
                raise ArgumentError(
                    f"`{name}` is in two parts, `{other.file}` and `{one.file}`; remove one of them with "
                    "its manifest",
                    path=folder,
                )
    return where


def check_all(
    found: Sequence[Manifest], jobs: Sequence[Job[Task]], folder: Path
) -> dict[str, Manifest]:
    """Return the part of each item; refuse to finish where one is in two parts, or in none."""
    where = places(found, folder)
    missing = [job.name for job in jobs if job.name not in where]
    if not missing:
        return where
    counts = {one.count for one in found}
    parts = ""
    if len(counts) == 1:
        (count,) = counts
        lacking = [
            number
            for number, part in shares(jobs, count).items()
            if any(job.name not in where for job in part)
        ]
        parts = f": part {', '.join(map(str, lacking))} of {count}"
    raise MissingPartsError(
        f"{len(missing)} of {counted(len(jobs), 'item')} missing{parts}; the first `{missing[0]}`",
        missing,
        path=folder,
    )


def join(
    whole: Whole[Task, Value],
    where: Mapping[str, Manifest],
    folder: Path,
    known: Mapping[Path, str],
    placement: Placement,
    started: float,
) -> Report:
    """Write the result of parts that hold everything, once; see `write`.

    Args:
        whole: The work.
        where: The part of each item; see `check_all`.
        folder: Where they lie.
        known: Hashes of inputs that need not be taken.
        placement: Where one run would compute everything: what is batched there lies together.
        started: When the work began, of `time.perf_counter`.

    Raises:
        LoraOpsError: See `write`; the parts stay.
    """
    marker = folder / _PUBLISHING
    was_there = marker.exists()

    def ready() -> None:
        plan = next((one.plan for one in where.values()), "")
        write_whole(marker, plan.encode(), replace=True)

    try:
        with unfinished_in(folder):
            jobs = [job for batch in placement.batches(whole.work.jobs) for job in batch]
            outcomes = _recalled(whole, jobs, where, folder, ready)
            return write(whole.sink, outcomes, started=started, known=known)
    except BaseException:
        if not was_there:
            marker.unlink(missing_ok=True)
        raise


def _recalled(
    whole: Whole[Task, Value],
    jobs: Sequence[Job[Task]],
    where: Mapping[str, Manifest],
    folder: Path,
    ready: Callable[[], None],
) -> Iterator[Outcome[Value]]:
    """The results of all jobs again, in their order; one part is open at a time."""
    with contextlib.ExitStack() as stack:
        opened: Manifest | None = None
        file: SafetensorsFile | None = None
        for job in jobs:
            manifest = where[job.name]
            if file is None or manifest is not opened:
                stack.close()
                file = stack.enter_context(SafetensorsFile(folder / manifest.file))
                opened = manifest
            with manifest.understood(folder):
                result = whole.sink.recall(job.name, manifest.items[job.name], file)
            yield result
    ready()


def clear(folder: Path) -> None:
    """Remove the parts: the plan first, as they are no more; the sign of what they were last.

    Whatever cannot be removed stays: the result has its name.
    """
    first, last = folder / PLAN, folder / _PUBLISHING
    with contextlib.suppress(OSError):
        between = [path for path in folder.iterdir() if path not in (first, last)]
        for path in (first, *between, last):
            _remove(path)
        folder.rmdir()


def sweep(folder: Path) -> None:
    """Remove what processes that were killed have left half done; nobody else is at this folder."""
    for path in folder.glob(".*.partial"):
        _remove(path)


def clear_but(folder: Path, found: Sequence[Manifest]) -> None:
    """Remove what runs that were killed have left, and parts that are damaged.

    Raises:
        WriteError: It cannot be removed.
    """
    kept = {Path(one.file).stem for one in found}
    with explained(folder):
        sweep(folder)
        for path in folder.glob("[0-9]*-of-*"):
            if path.stem not in kept:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
