"""The parts of some work, found again, and joined into its result."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import ArgumentError, MismatchError, MissingPartsError
from ..files import SafetensorsFile, unfinished_in
from ..report import Report, counted
from .document import Document
from .job import Outcome
from .manifest import Manifest, manifests, parts_folder
from .output import write
from .whole import Whole

Task = TypeVar("Task")
Value = TypeVar("Value")

# There from when the result gets its names until the parts are gone.
_PUBLISHING = "publishing"


def is_publishing(output: Path) -> bool:
    """Whether a run that was killed was about to give a result this name: what has it is its own."""
    return (parts_folder(output) / _PUBLISHING).exists()


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


def check_all(found: Sequence[Manifest], document: Document, folder: Path) -> None:
    """Refuse to finish where an item is in two parts, or in none."""
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
    missing = [item.name for item in document.items if item.name not in where]
    if not missing:
        return
    counts = {one.count for one in found}
    parts = ""
    if len(counts) == 1:
        (count,) = counts
        lacking = sorted({*range(1, count + 1)} - {one.number for one in found})
        parts = f": part {', '.join(map(str, lacking))} of {count}"
    raise MissingPartsError(
        f"{len(missing)} of {counted(len(document.items), 'item')} missing{parts}; the first `{missing[0]}`",
        missing,
        path=folder,
    )


def join(
    whole: Whole[Task, Value],
    found: Sequence[Manifest],
    folder: Path,
    known: Mapping[Path, str],
    started: float,
) -> Report:
    """Write the result of parts that hold everything, once; see `write`.

    Args:
        whole: The work.
        found: The parts.
        folder: Where they lie.
        known: Hashes of inputs that need not be taken.
        started: When the work began, of `time.perf_counter`.

    Raises:
        LoraOpsError: See `write`; the parts stay.
    """
    marker = folder / _PUBLISHING
    was_there = marker.exists()

    def ready() -> None:
        marker.touch()

    try:
        with unfinished_in(folder):
            outcomes = _recalled(whole, found, folder, ready)
            return write(whole.sink, outcomes, started=started, known=known)
    except BaseException:
        if not was_there:
            marker.unlink(missing_ok=True)
        raise


def _recalled(
    whole: Whole[Task, Value],
    found: Sequence[Manifest],
    folder: Path,
    ready: Callable[[], None],
) -> Iterator[Outcome[Value]]:
    """The results of all jobs again, in the order of the work; one part is open at a time."""
    where = {name: one for one in found for name in one.items}
    with contextlib.ExitStack() as stack:
        opened: Manifest | None = None
        file: SafetensorsFile | None = None
        for job in whole.work.jobs:
            manifest = where[job.name]
            if file is None or manifest is not opened:
                stack.close()
                file = stack.enter_context(SafetensorsFile(folder / manifest.file))
                opened = manifest
            yield whole.sink.recall(job.name, manifest.items[job.name], file)
    ready()


def clear(folder: Path) -> None:
    """Remove the parts; the sign that their result was being named goes last."""
    for path in folder.iterdir():
        if path.name == _PUBLISHING:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    (folder / _PUBLISHING).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
