"""Extraction from file to file: streamed in, streamed out, complete under its name or not at all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...adapters.formats import PEFT
from ...adapters.layers import Layer
from ...errors import ArgumentError, MismatchError
from ...files import Output, check_output, read_errors
from ...linalg.ranks.budgets import Budget
from ...linalg.ranks.rules import RankRule
from ...parts.carry_out import carry_out
from ...parts.whole import Division, Whole
from ...report import Report
from ...run.devices import Placement, place
from ...run.inputs import paths_of
from ...run.job import Outcome, Work
from ...run.workers import Progress
from ...source import TensorSource
from ..peft_folder import check_folder, is_for_folder
from .extract import extraction_work
from .extracted_file import ExtractedFile, naming
from .extraction import Extraction
from .peft_file import PeftExtraction, peft_work
from .peft_plan import Embeddings, PeftPlan, plan_peft
from .plan import Plan, PlanOptions, plan_extraction
from .spending import check_size, with_ranks
from .task import Task

if TYPE_CHECKING:
    from typing_extensions import Unpack


def plan_file(
    base: TensorSource,
    tuned: TensorSource,
    rule: str | int | RankRule | Budget | None = None,
    *,
    output: Output | None = None,
    force: bool = False,
    format: str = "comfy",
    embeddings: Embeddings | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """Check everything that can be checked before the work begins, and plan it.

    Args:
        base: The checkpoint that was started from.
        tuned: The checkpoint that came of it.
        rule: How many directions a layer gets; see `plan_extraction` for None.
        output: Where the result is to go; None: nowhere yet.
        force: Whether the output may replace a file.
        format: comfy, kohya, or peft, which is a folder; that it can hold this model is checked.
        embeddings: For peft, what becomes of embeddings and heads that changed: kept `whole`, as
            `modules_to_save`; given factors, `lora`; or left out, `none`. None: `whole`.
        **options: See `PlanOptions`.

    Raises:
        ArgumentError: The output cannot or must not be written; the rule or a pattern is wrong.
        QuantisedError: A checkpoint's numbers are stored with scales.
        MismatchError: The checkpoints do not belong together, or are one file.
    """
    read = paths_of(base, tuned, options.get("activations"))
    if isinstance(output, Path) and format == PEFT.name:
        if not is_for_folder(output, format):
            raise ArgumentError(
                f"is the name of a file, and format `peft` is a folder; give a name without `{output.suffix}`",
                path=output,
            )
        check_folder(output, read, force=force)
    elif output is not None:
        check_output(output, read, force=force)
    if _same(paths_of(base), paths_of(tuned)):
        raise MismatchError(
            f"{base.name} and {tuned.name} are one file: no layer differs; "
            "give the base and the tuned checkpoint"
        )
    if format == PEFT.name:
        return plan_peft(base, tuned, rule, embeddings=embeddings or "whole", **options)
    if embeddings is not None:
        raise ArgumentError(
            f"what becomes of embeddings ({embeddings}) is asked of format `peft` alone; leave it out, or use that "
            f"format in place of `{format}`"
        )
    plan = plan_extraction(base, tuned, rule, **options)
    naming(plan, format)
    if output is not None:
        sink = sink_of(Extraction(plan, base, tuned, output, format, force))
        check_size(plan, sink.overhead)
    return plan


def extract_file(
    plan: Plan,
    base: TensorSource,
    tuned: TensorSource,
    output: Output,
    *,
    format: str = "comfy",
    force: bool = False,
    exact: bool = False,
    placement: Placement | None = None,
    seed: int = 0,
    version: str = "",
    progress: Progress | None = None,
    division: Division | None = None,
) -> Report:
    """Run a plan into a file, and return its report.

    Args:
        plan: From `plan_file`, of these two.
        base: The checkpoint that was started from.
        tuned: The checkpoint that came of it.
        output: The LoRA file, or folder of PEFT. A file in memory is filled.
        format: comfy, kohya or peft, as the plan was made for.
        force: Whether the output may replace a file.
        exact: Compute the exact truncation.
        placement: Where to compute; None: the CPU.
        seed: Of the random start.
        version: Of lorakit, for the record.
        progress: Called after each parameter.
        division: How it is done in parts; None: at once.

    Raises:
        ArgumentError: The format is not offered for this architecture, or cannot hold full
            differences; or the output exists.
        MismatchError: No layer differs; no file is written.
        FormatError: A checkpoint changed while it was read; no file is written.
        NonFiniteError: NaN or infinity in, or out of the factors' dtype.
        WriteError: The disk is full, or the like.
    """
    started = time.perf_counter()
    sink = sink_of(Extraction(plan, base, tuned, output, format, force, exact, seed, version))
    if division is None or division.computes:
        plan, progress = with_ranks(
            plan,
            overhead=sink.overhead,
            exact=exact,
            seed=seed,
            placement=placement,
            progress=progress,
        )
    whole = Whole("extract", output, sink, work_of(plan, exact=exact, seed=seed))
    return carry_out(
        *(whole, placement or place("cpu"), division), started=started, progress=progress
    )


def sink_of(extraction: Extraction) -> ExtractedFile | PeftExtraction:
    """Return what an extraction is run into: a file, or PEFT's folder."""
    plan, output = extraction.plan, extraction.output
    if isinstance(plan, PeftPlan) and isinstance(output, Path):
        return PeftExtraction(extraction, plan, output)
    return ExtractedFile(extraction)


def work_of(plan: Plan, *, exact: bool, seed: int) -> Work[Task, Outcome[Layer]]:
    """Return the jobs of a plan that has its ranks; see `extraction_work`."""
    if isinstance(plan, PeftPlan):
        return peft_work(plan, exact=exact, seed=seed)
    return extraction_work(plan, exact=exact, seed=seed)


def _same(ones: Sequence[Path], others: Sequence[Path]) -> bool:
    """Whether they are the same files."""
    if not ones or len(ones) != len(others):
        return False
    with read_errors(ones[0]):
        return all(a.samefile(b) for a, b in zip(ones, others, strict=True))
