"""Work in parts: each into its own file, in any process on any machine, and all of them joined.

A part is complete under its name or not there. What a killed process leaves lies in the folder of the
parts, and goes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import ArgumentError, LoraOpsError, MismatchError
from ..files import make_folder, write_whole
from ..report import Report, counted
from ..run.devices import Placement
from ..run.inputs import hashes_of
from ..run.output import write
from ..run.stream import stream
from ..run.workers import Progress
from .claim import claimed
from .document import Document, read_document
from .engine import Engine, InTurn, Share, Tell
from .joining import check_all, clear, clear_but, found_parts, join, places, plan_of_finished, sweep
from .manifest import PLAN, Manifest, has_parts, parts_folder, shares
from .one_part import Maker, one_part
from .whole import Division, Whole

Task = TypeVar("Task")
Value = TypeVar("Value")

# Of a run that is done in parts, each has about so much cost; there are so many at least.
_COST, _FEWEST = 1 << 27, 16


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
        MissingPartsError: All that is to be finished is not there; or what made a part ended before it
            was made, three times.
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
        if (finished := plan_of_finished(folder)) is not None:
            clear(folder)
            if finished == document.hash:
                return Report((), notes=("was finished before; its parts are gone now",))
            if not division.force:
                raise ArgumentError("exists already, of another plan", path=output)
            make_folder(folder)
        _agree(folder, document, output, may_replace=division.part is None)
        if division.part is not None:
            return one_part(whole, document, folder, division, placement, started, progress)
        try:
            return _finished(whole, document, folder, division, placement, started, progress)
        except BaseException:
            if not has_parts(folder):  # nothing is lost
                clear(folder)
            raise


def _finished(
    whole: Whole[Task, Value],
    document: Document,
    folder: Path,
    division: Division,
    placement: Placement,
    started: float,
    progress: Progress | None,
) -> Report:
    """Make what is missing, if that is asked for, and join all parts."""
    # What an earlier run has left is not trusted before it is read.
    there = found_parts(folder, document, hashed=division.verify or not division.finish)
    places(there, folder)
    known = _hashes(whole, there)
    with hashes_of([path for path in whole.inputs if path not in known]) as hashes:
        if not division.finish:
            engine = division.engine or InTurn(placement)
            _make_missing(whole, document, folder, there, engine, progress)
            there = found_parts(folder, document, hashed=False)
        where = check_all(there, whole.work.jobs, folder)
        known |= {path: digest for path, digest in hashes().items() if digest}
    report = join(whole, where, folder, known, placement, started)
    clear(folder)
    return report


def _agree(folder: Path, document: Document, output: Path, *, may_replace: bool) -> None:
    """Keep the plan with its parts; refuse another than that of those that are there."""
    path, text = folder / PLAN, document.to_json().encode()
    try:
        write_whole(path, text, replace=False)
        return
    except LoraOpsError:
        if not path.exists():
            raise
    there = read_document(path)
    if there.hash == document.hash:
        return
    if not may_replace or has_parts(folder):
        raise MismatchError(
            f"`{folder.name}` holds parts of another plan ({there.difference(document)}); ask for the same, "
            "or remove that folder, or give another output",
            path=output,
        )
    write_whole(path, text, replace=True)


def _make_missing(
    whole: Whole[Task, Value],
    document: Document,
    folder: Path,
    found: Sequence[Manifest],
    engine: Engine,
    progress: Progress | None,
) -> None:
    """Have all parts made that are not there."""
    there = {name for one in found for name in one.items}
    jobs = whole.work.jobs
    count = max(1, min(len(jobs), max(_FEWEST, document.cost // _COST)))
    missing: list[Share] = []
    for number, part in shares(jobs, count).items():
        left = [job for job in part if job.name not in there]
        if left:
            names = tuple(job.name for job in left)
            missing.append(Share(number, count, names, sum(job.cost for job in left)))
    clear_but(folder, found)
    maker = Maker(whole, document.hash, folder.absolute())
    try:
        engine(missing, maker, _told(document, missing, progress))
    finally:
        sweep(folder)


def _told(document: Document, missing: Sequence[Share], progress: Progress | None) -> Tell:
    """The progress of parts as that of all."""
    came = dict.fromkeys((share.number for share in missing), 0)
    before = document.cost - sum(share.cost for share in missing)

    def tell(share: Share, done: int, name: str) -> None:
        came[share.number] = done
        if progress is not None:
            progress(before + sum(came.values()), document.cost, name)

    return tell


def _hashes(whole: Whole[Task, Value], found: Sequence[Manifest]) -> dict[Path, str]:
    """The hashes of inputs that were taken beside the parts."""
    paths = whole.inputs
    return {
        path: one.hashes[str(n)]
        for one in found
        for n, path in enumerate(paths)
        if str(n) in one.hashes
    }
