"""Work in parts: each into its own file, in any process on any machine, and all of them joined.

A part is complete under its name or not there: the file gets its name first, its manifest last, and only
a part with a manifest counts. What a killed process leaves lies in the folder of the parts, and goes with it.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..errors import ArgumentError, MismatchError, MissingPartsError
from ..files import Output, SafetensorsFile, file_sha256, unfinished_in, write_whole
from ..report import LayerReport, Report, Skip, counted
from .claim import claimed
from .devices import Placement
from .document import Document, Item, input_files, read_document
from .inputs import hashes_of, paths_of, unchanged
from .job import Job, Outcome, Work
from .manifest import PLAN, Manifest, manifests, part_name, parts_folder, share
from .output import Sink, write
from .stream import stream
from .workers import Progress

Task = TypeVar("Task")
Value = TypeVar("Value")

# There from when the result gets its names until the parts are gone.
_PUBLISHING = "publishing"
# Of a run that is done in parts, each has about so much cost; there are so many at least.
_COST, _FEWEST = 1 << 27, 16


@dataclass(frozen=True, slots=True)
class Division:
    """How work is done in parts.

    Attributes:
        options: What was asked for, by name, as JSON holds it: all that decides what comes out.
        version: Of lorakit.
        request: What whoever finishes it has to ask for again; kept with the plan.
        part: Only this one, by its number from 1, and of how many; None: all that are missing, then
            the result of all of them.
        finish: Whether nothing is computed: all parts must be there.
        plan: Nothing is done but to write the plan to this file; `force`: also where there is one.
        force: See `plan`.
        verify: Whether parts that are there are hashed; else they count by size. Where the result is
            made of parts of an earlier run that was stopped, they always are.
    """

    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    version: str = ""
    request: Mapping[str, Any] = field(default_factory=dict[str, Any])
    part: tuple[int, int] | None = None
    finish: bool = False
    plan: Path | None = None
    force: bool = False
    verify: bool = False

    @property
    def computes(self) -> bool:
        """Whether results are made, which may need to know all of the work first."""
        return self.plan is None and not self.finish


@dataclass(frozen=True, slots=True, eq=False)
class Whole(Generic[Task, Value]):
    """All that an operation does, and the file that it goes into. It can be pickled.

    Attributes:
        operation: extract, merge, ...
        output: Where to.
        sink: The file.
        work: The jobs; their names are those of their results, and no two are equal.
    """

    operation: str
    output: Output
    sink: Sink[Value]
    work: Work[Task, Outcome[Value]]

    @property
    def inputs(self) -> list[Path]:
        """The files that are read."""
        return list(dict.fromkeys(paths_of(*self.sink.sources, *self.sink.others)))

    def document(self, division: Division) -> Document:
        """Return the plan as a document.

        Raises:
            FormatError: A file that is read is gone.
        """
        return Document(
            self.operation,
            division.version,
            division.options,
            Path(self.output.name).name,
            input_files(self.inputs),
            tuple(Item(job.name, job.cost, tuple(job.shape)) for job in self.work.jobs),
            division.request,
        )


def carry_out(
    whole: Whole[Task, Value],
    placement: Placement,
    division: Division | None,
    *,
    started: float,
    progress: Progress | None = None,
) -> Report:
    """Do some work at once; or in parts: one of them, or all that are missing and then the result.

    Args:
        whole: The work.
        placement: Where to compute.
        division: Into which parts; None: at once.
        started: When the work began, of `time.perf_counter`.
        progress: Called after each job.

    Returns:
        Of one part, what became of its items.

    Raises:
        ArgumentError: There is no such part; another run is at them; or two parts hold the same.
        MismatchError: The parts that are there are of another plan.
        MissingPartsError: All that is to be finished is not there.
        LoraOpsError: See `write`; parts that are complete stay.
    """
    if division is None:
        return write(whole.sink, stream(whole.work, placement, progress=progress), started=started)
    output = whole.output
    if not isinstance(output, Path):
        raise ArgumentError("a file in memory is not made in parts; give a path")
    folder, document = parts_folder(output), whole.document(division)
    if division.plan is not None:
        write_whole(division.plan, document.to_json().encode(), replace=division.force)
        return Report(
            (), notes=(f"{counted(len(document.items), 'item')}, plan {document.hash:.12}",)
        )
    if division.finish and not folder.is_dir():
        raise ArgumentError("has no parts to be finished", path=output)
    if division.part is not None:
        number, count = division.part
        if not 1 <= number <= count:
            raise ArgumentError(f"there is no part {number} of {count}: parts are 1 to {count}")
    with claimed(folder, alone=division.part is None):
        _agree(folder, document, output)
        if division.part is not None:
            return _one(whole, document, folder, division, placement, started, progress)
        # What an earlier run has left is not trusted before it is read.
        there = _found(folder, document, hashed=division.verify or not division.finish)
        known = _hashes(whole, there)
        with hashes_of([path for path in whole.inputs if path not in known]) as hashes:
            if not division.finish:
                _make_missing(whole, document, folder, there, placement, progress)
                there = _found(folder, document, hashed=False)
            _check_all(there, document, folder)
            known |= {path: digest for path, digest in hashes().items() if digest}
        report = _join(whole, there, folder, known, started)
        _clear(folder)
    return report


def is_publishing(output: Path) -> bool:
    """Whether a run that was killed was about to give a result this name: what has it is its own."""
    return (parts_folder(output) / _PUBLISHING).exists()


def _agree(folder: Path, document: Document, output: Path) -> None:
    """Keep the plan with its parts; refuse another than that of those that are there."""
    path = folder / PLAN
    if not path.exists():
        write_whole(path, document.to_json().encode(), replace=True)
        return
    there = read_document(path)
    if there.hash != document.hash:
        raise MismatchError(
            f"`{folder.name}` holds parts of another plan ({there.difference(document)}); ask for the same, "
            "or remove that folder, or give another output",
            path=output,
        )


def _one(
    whole: Whole[Task, Value],
    document: Document,
    folder: Path,
    division: Division,
    placement: Placement,
    started: float,
    progress: Progress | None,
) -> Report:
    number, count = division.part or (1, 1)
    name = part_name(number, count)
    for there in manifests(folder):
        is_it = Path(there.file).stem == name and there.plan == document.hash
        if is_it and there.is_sound(folder, hashed=division.verify):
            return _of_part(whole, there, folder, started, "was there already")
    jobs = share(whole.work.jobs, number, count)
    mine = range(number - 1, len(whole.inputs), count)
    made = make_part(whole, document.hash, folder, (number, count), jobs, placement, progress, mine)
    return _of_part(whole, made, folder, started, "")


def make_part(
    whole: Whole[Task, Value],
    plan: str,
    folder: Path,
    place: tuple[int, int],
    jobs: Sequence[Job[Task]],
    placement: Placement,
    progress: Progress | None = None,
    hashed: Sequence[int] = (),
) -> Manifest:
    """Do some jobs, into the file of a part.

    Args:
        whole: All of the work.
        plan: Hash of its document.
        folder: Of the parts.
        place: Which part, from 1, and of how many.
        jobs: What is to be done.
        placement: Where to compute.
        progress: Called after each job.
        hashed: Numbers of the inputs whose hashes are taken meanwhile.

    Raises:
        LoraOpsError: See `write`; there is no such part then.
    """
    started = time.perf_counter()
    name = part_name(*place)
    path, sink = folder / f"{name}.safetensors", whole.sink
    # What is about to be replaced is no part any more.
    (folder / f"{name}.json").unlink(missing_ok=True)
    items = {}
    with (
        unchanged(*sink.sources, *sink.others),
        hashes_of([whole.inputs[n] for n in hashed]) as hashes,
        sink.part(path, [job.name for job in jobs]) as writer,
        closing(stream(Work(jobs, whole.work.compute), placement, progress=progress)) as results,
    ):
        for outcome in results:
            items[outcome.name] = sink.keep(outcome, writer)
        written = writer.finish({"lorakit.plan": plan})
        taken = hashes()
    manifest = Manifest(
        plan=plan,
        number=place[0],
        count=place[1],
        file=path.name,
        size=written.size,
        sha256=file_sha256(path),
        items={job.name: items[job.name] for job in jobs},
        hashes={str(n): taken[whole.inputs[n]] for n in hashed},
        seconds=time.perf_counter() - started,
    )
    manifest.write(folder)
    return manifest


def _make_missing(
    whole: Whole[Task, Value],
    document: Document,
    folder: Path,
    found: Sequence[Manifest],
    placement: Placement,
    progress: Progress | None,
) -> None:
    """Make all parts that are not there, one after another."""
    for path in folder.glob(
        ".*.partial"
    ):  # of runs that were killed: nobody else is at this folder
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    there = {name for one in found for name in one.items}
    jobs = whole.work.jobs
    count = max(1, min(len(jobs), max(_FEWEST, document.cost // _COST)))
    done = sum(job.cost for job in jobs if job.name in there)
    for number in range(1, count + 1):
        left = [job for job in share(jobs, number, count) if job.name not in there]
        if left:
            told = _after(progress, done, document.cost)
            make_part(whole, document.hash, folder, (number, count), left, placement, told)
            done += sum(job.cost for job in left)


def _hashes(whole: Whole[Task, Value], found: Sequence[Manifest]) -> dict[Path, str]:
    """The hashes of inputs that were taken beside the parts."""
    paths = whole.inputs
    return {paths[int(n)]: digest for one in found for n, digest in one.hashes.items()}


def _after(progress: Progress | None, done: int, total: int) -> Progress | None:
    """The progress of a part as that of all."""
    if progress is None:
        return None
    return lambda more, _, name: progress(done + more, total, name)


def _found(folder: Path, document: Document, *, hashed: bool) -> list[Manifest]:
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


def _check_all(found: Sequence[Manifest], document: Document, folder: Path) -> None:
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


def _join(
    whole: Whole[Task, Value],
    found: Sequence[Manifest],
    folder: Path,
    known: Mapping[Path, str],
    started: float,
) -> Report:
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


def _of_part(
    whole: Whole[Task, Value], part: Manifest, folder: Path, started: float, told: str
) -> Report:
    """What is to be said of one part."""
    reports = [one for kept in part.items.values() for one in whole.sink.said(kept)]
    of = f"part {part.number} of {part.count}: {len(part.items)} of {counted(len(whole.work.jobs), 'item')}"
    return Report(
        tuple(one for one in reports if isinstance(one, LayerReport)),
        tuple(one for one in reports if isinstance(one, Skip)),
        (f"{of} {told}".rstrip(),),
        seconds=time.perf_counter() - started,
        size=part.size,
    )


def _clear(folder: Path) -> None:
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
