"""One part of some work, into its own file.

The file gets its name first, its manifest last, and only a part with a manifest counts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ..files import explained, file_sha256
from ..report import LayerReport, Report, Skip, counted
from ..run.devices import Placement
from ..run.inputs import hashes_of, unchanged
from ..run.job import Job, Work
from ..run.output import ended
from ..run.stream import stream
from ..run.workers import Progress
from .document import Document
from .engine import Share
from .manifest import Manifest, part_name, read_manifest, shares
from .whole import Division, Whole

Task = TypeVar("Task")
Value = TypeVar("Value")


def one_part(
    whole: Whole[Task, Value],
    document: Document,
    folder: Path,
    division: Division,
    placement: Placement,
    started: float,
    progress: Progress | None,
) -> Report:
    """Make one part, unless it is there already; see `carry_out`."""
    number, count = division.part or (1, 1)
    there = read_manifest(folder / f"{part_name(number, count)}.json")
    if (
        there is not None
        and there.plan == document.hash
        and there.is_sound(folder, hashed=division.verify)
    ):
        return _of_part(whole, there, folder, started, "was there already")
    jobs = shares(whole.work.jobs, count).get(number, [])
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
    with explained(path):  # what is about to be replaced is no part any more
        (folder / f"{name}.json").unlink(missing_ok=True)
    items = {}
    with (
        unchanged(*sink.sources, *sink.others),
        hashes_of([whole.inputs[n] for n in hashed]) as hashes,
        sink.part(path, [job.name for job in jobs]) as writer,
        ended(stream(Work(jobs, whole.work.compute), placement, progress=progress)) as results,
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


@dataclass(frozen=True, slots=True, eq=False)
class Maker(Generic[Task, Value]):
    """Makes parts of some work, in whichever process it arrives; see `Make`.

    Attributes:
        whole: All of the work.
        plan: Hash of its document.
        folder: Of the parts, from the root.
    """

    whole: Whole[Task, Value]
    plan: str
    folder: Path

    def __call__(
        self, share: Share, placement: Placement, progress: Progress | None = None
    ) -> Manifest:
        """Make one; see `make_part`."""
        wanted = frozenset(share.names)
        jobs = [job for job in self.whole.work.jobs if job.name in wanted]
        place = (share.number, share.count)
        return make_part(self.whole, self.plan, self.folder, place, jobs, placement, progress)


def _of_part(
    whole: Whole[Task, Value], part: Manifest, folder: Path, started: float, told: str
) -> Report:
    """What is to be said of one part."""
    with part.understood(folder):
        reports = [one for kept in part.items.values() for one in whole.sink.said(kept)]
    of = f"part {part.number} of {part.count}: {len(part.items)} of {counted(len(whole.work.jobs), 'item')}"
    return Report(
        tuple(one for one in reports if isinstance(one, LayerReport)),
        tuple(one for one in reports if isinstance(one, Skip)),
        (f"{of} {told}".rstrip(),),
        seconds=time.perf_counter() - started,
        size=part.size,
    )
