"""Many tuned checkpoints against one base, into a folder: what the base costs is paid once."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...adapters.checkpoint import check_checkpoint
from ...adapters.formats import PEFT, writable
from ...adapters.layers import Layer
from ...errors import ArgumentError, LoraOpsError
from ...files import FileSource, check_output, make_folder, open_source
from ...linalg.ranks.budgets import Budget, parse_rule
from ...linalg.ranks.rules import RankRule
from ...report import Report
from ...run.devices import Placement
from ...run.inputs import paths_of
from ...run.job import Outcome, Work
from ...run.output import write_each
from ...run.stream import stream
from ...run.workers import Progress
from ...source import TensorSource
from ..peft_folder import check_folder
from ..preview import Preview
from .extraction import Extraction
from .file import plan_file, sink_of, work_of
from .foretold import preview_extraction
from .peft_plan import Embeddings
from .plan import Plan, PlanOptions
from .shared import shared, together
from .spending import with_ranks_each
from .task import Task

if TYPE_CHECKING:
    from typing_extensions import Unpack


def extract_files(
    base: TensorSource,
    tuned: Sequence[Path],
    folder: Path,
    rule: str | int | RankRule | Budget | None = None,
    *,
    format: str = "comfy",
    embeddings: Embeddings | None = None,
    force: bool = False,
    exact: bool = False,
    placement: Placement | None = None,
    seed: int = 0,
    version: str = "",
    progress: Progress | None = None,
    **options: Unpack[PlanOptions],
) -> dict[Path, Report | LoraOpsError]:
    """Write a LoRA of each of several tuned checkpoints against one base, named after them.

    Each file is byte for byte that of `extract_file`, but each weight of the base is read and decoded
    once, and its file hashed once. In memory are, of each tuned checkpoint, the factors of the few
    weights that are worked on side by side (see `Placement`); of checkpoints themselves as much as in one
    extraction, as those are taken one after another. All files are complete at the end, one by one.

    Args:
        base: The checkpoint that was started from.
        tuned: Files and folders of those that came of it.
        folder: Where to; made where it does not exist.
        rule: How many directions a layer gets; see `plan_extraction` for None.
        format: comfy, kohya, or peft, which gives a folder for each.
        embeddings: Of format peft; see `plan_file`.
        force: Whether files of the folder may be replaced.
        exact: Compute the exact truncation.
        placement: Where to compute; None: the CPU.
        seed: Of the random start.
        version: Of lorakit, for the record.
        progress: Called after each parameter, with the cost of all.
        **options: See `PlanOptions`.

    Returns:
        For each tuned checkpoint its report; or why it has none, which does not stop the others.

    Raises:
        ArgumentError: Before anything is written: two would get one name, or one that exists or is an
            input; the rule or the format is wrong.
        LoraOpsError: The base cannot be used.
        WriteError: The folder cannot be made.
    """
    started = time.perf_counter()
    with _planned(base, tuned, folder, rule, format, embeddings, force, options) as planned:
        found: dict[Path, Report | LoraOpsError] = {
            path: one for path, one in planned.items() if isinstance(one, LoraOpsError)
        }
        ready = {path: one for path, one in planned.items() if isinstance(one, _Planned)}
        if ready:
            make_folder(folder)
        plans, held = shared([one.plan for one in ready.values()])
        sinks = [
            sink_of(
                Extraction(plan, base, one.source, one.output, format, force, exact, seed, version)
            )
            for one, plan in zip(ready.values(), plans, strict=True)
        ]
        settled, progress = with_ranks_each(
            *(plans, held, [sink.overhead for sink in sinks]),
            exact=exact,
            seed=seed,
            placement=placement,
            progress=progress,
        )
        works: dict[Path, Work[Task, Outcome[Layer]]] = {}
        for path, plan in zip(ready, settled, strict=True):
            if isinstance(plan, Plan):
                works[path] = work_of(plan, exact=exact, seed=seed)
            else:
                found[path] = plan
        files = [sink for path, sink in zip(ready, sinks, strict=True) if path in works]
        results = stream(together(list(works.values()), held), placement, progress=progress)
        found.update(zip(works, write_each(files, results, started=started), strict=True))
        return {path: found[path] for path in planned}


def preview_files(
    base: TensorSource,
    tuned: Sequence[Path],
    folder: Path,
    rule: str | int | RankRule | Budget | None = None,
    *,
    format: str = "comfy",
    embeddings: Embeddings | None = None,
    force: bool = False,
    **options: Unpack[PlanOptions],
) -> dict[Path, Preview | LoraOpsError]:
    """Return what `extract_files` would do with each tuned checkpoint, from headers alone.

    Args:
        base: The checkpoint that was started from.
        tuned: Files and folders of those that came of it.
        folder: Where to.
        rule: How many directions a layer gets.
        format: comfy, kohya, or peft, which gives a folder for each.
        embeddings: Of format peft; see `plan_file`.
        force: Whether files of the folder may be replaced.
        **options: See `PlanOptions`.

    Raises:
        LoraOpsError: As `extract_files`.
    """
    with _planned(base, tuned, folder, rule, format, embeddings, force, options) as planned:
        return {
            path: one if isinstance(one, LoraOpsError) else preview_extraction(one.plan, one.output)
            for path, one in planned.items()
        }


@dataclass(frozen=True, slots=True)
class _Planned:
    """One tuned checkpoint.

    Attributes:
        source: The checkpoint.
        plan: What is extracted of it.
        output: Where to.
    """

    source: FileSource
    plan: Plan
    output: Path


@contextmanager
def _planned(
    base: TensorSource,
    tuned: Sequence[Path],
    folder: Path,
    rule: str | int | RankRule | Budget | None,
    format: str,
    embeddings: Embeddings | None,
    force: bool,
    options: PlanOptions,
) -> Generator[Mapping[Path, _Planned | LoraOpsError], None, None]:
    """Open all of them, and plan: what is wrong with one is found here, as far as headers tell."""
    check_checkpoint(base)
    if format != PEFT.name:
        writable(format)
    if rule is not None:
        rule = parse_rule(rule, stored=True)
    outputs = outputs_of(tuned, folder, format)
    with ExitStack() as stack:
        opened = {path: _opened(path, stack) for path in tuned}
        files = [one for one in opened.values() if isinstance(one, FileSource)]
        if folder.exists():
            for output in outputs.values():
                check = check_folder if format == PEFT.name else check_output
                check(
                    output,
                    [*paths_of(base, *files, options.get("activations")), *tuned],
                    force=force,
                )
        planned = {
            path: one
            if isinstance(one, LoraOpsError)
            else _plan(base, one, rule, outputs[path], format, embeddings, options)
            for path, one in opened.items()
        }
        wrong = [one for one in planned.values() if isinstance(one, LoraOpsError)]
        if len(wrong) == len(planned) and len(set(map(str, wrong))) == 1:
            raise wrong[0]  # what all of them say is no matter of one
        yield planned


def outputs_of(tuned: Sequence[Path], folder: Path, format: str) -> dict[Path, Path]:
    """Return the output of each tuned checkpoint: of format peft a folder.

    Args:
        tuned: Files and folders.
        folder: Where to.
        format: comfy, kohya or peft.

    Raises:
        ArgumentError: Two would get one name, or the folder is none.
    """
    suffix = "" if format == PEFT.name else ".safetensors"
    is_file = folder.suffix.lower() == ".safetensors" or folder.is_file()
    if is_file and not folder.is_dir():
        raise ArgumentError("is no folder, which several tuned checkpoints need", path=folder)
    found: dict[Path, Path] = {}
    taken: dict[str, Path] = {}
    for path in tuned:
        output = folder / f"{output_name(path)}{suffix}"
        # On some systems names that differ in case alone are one.
        other = taken.setdefault(output.name.casefold(), path)
        if path in found or other != path:
            raise ArgumentError(
                f"`{other}` and `{path}` would both be written to `{output}`; rename one of them, or "
                "extract it by itself"
            )
        found[path] = output
    return found


def output_name(tuned: Path) -> str:
    """Return the name of a LoRA of a checkpoint, without its suffix: that of the file or folder.

    Args:
        tuned: The checkpoint.
    """
    if tuned.is_dir():
        return tuned.resolve().name
    return Path(tuned.name.removesuffix(".index.json")).stem


def _opened(path: Path, stack: ExitStack) -> FileSource | LoraOpsError:
    try:
        return stack.enter_context(open_source(path))
    except LoraOpsError as error:
        return error


def _plan(
    base: TensorSource,
    tuned: FileSource,
    rule: RankRule | Budget | None,
    output: Path,
    format: str,
    embeddings: Embeddings | None,
    options: PlanOptions,
) -> _Planned | LoraOpsError:
    try:
        plan = plan_file(base, tuned, rule, format=format, embeddings=embeddings, **options)
        return _Planned(tuned, plan, output)
    except LoraOpsError as error:
        return error
