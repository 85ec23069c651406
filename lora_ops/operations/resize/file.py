"""Resize from file to file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ...adapters.base import base_weights
from ...adapters.changes import as_changes
from ...adapters.edited import EditReport
from ...adapters.formats import decode, format_named
from ...adapters.layers import Convention
from ...adapters.metadata import Input, Operation, Result, Source, edited_metadata
from ...adapters.outline import Outline
from ...errors import ArgumentError
from ...files import FileSource, Output
from ...linalg.ranks.budgets import Budget, parse_rule
from ...linalg.ranks.rules import RankRule
from ...report import Report
from ...run.devices import Placement
from ...run.inputs import paths_of
from ...run.workers import Progress
from ..output import draft_of
from ..peft_folder import check_written, keeps_alpha, write_result
from .importance import importance
from .resize import Resizing, resize_notes, run_resize


def resize_file(
    source: FileSource,
    output: Output,
    rule: str | int | RankRule | Budget,
    *,
    alpha: float | None = None,
    dtype: torch.dtype | None = None,
    relative_to: FileSource | None = None,
    norm: str = "spectral",
    base: FileSource | None = None,
    dora: Convention = "paper",
    exact: bool = False,
    placement: Placement | None = None,
    force: bool = False,
    version: str = "",
    progress: Progress | None = None,
) -> Report:
    """Write an adapter at other ranks; see `resize`.

    Args:
        source: The adapter file.
        output: Where to.
        rule: See `ranks` and `budgets`; a size is that of the file as written.
        alpha: The number to store; None: the new rank.
        dtype: Of the factors; None: each layer's own.
        relative_to: The checkpoint whose weights a budget compares the changes with.
        norm: Of those weights: spectral or frobenius.
        base: The checkpoint that it was trained on, for kinds that are made from the weight.
        dora: How to read such kinds where programs differ; see docs/kinds.md.
        exact: Cut those exactly, not within 1e-3 of the least error.
        placement: Where to compute; None: the CPU.
        force: Whether the output may replace a file.
        version: Of lorakit, for the record.
        progress: Called after each layer.

    Raises:
        LoraOpsError: As `resize`; or the output cannot, or must not, be written.
    """
    started = time.perf_counter()
    check_written(output, paths_of(source, relative_to, base), source, force=force)
    chosen = parse_rule(rule)
    if relative_to is not None and isinstance(chosen, RankRule):
        raise ArgumentError(
            f"rank rule `{chosen}` looks at one layer at a time, so weights to compare with change "
            "nothing; use a budget: size=, mean= or total_error="
        )
    adapter = decode(source)
    if base is not None:
        layers = decode(Outline(source)).layers
        weights = base_weights(adapter, layers, base, source.name)
        adapter = as_changes(adapter, layers, weights, dora, everything=False)
    draft = draft_of(source, adapter, output, force, (relative_to, base))
    resizing = Resizing(
        chosen,
        alpha,
        dtype,
        importance(adapter.layers, relative_to, norm) if relative_to else {},
        overhead=draft.overhead,
        has_alpha=keeps_alpha(output, format_named(adapter.format), adapter.keys),
        exact=exact,
    )

    def describe(inputs: Sequence[Input], result: Result) -> dict[str, str]:
        told = {"rank": str(chosen)}
        told |= {} if alpha is None else {"alpha": f"{alpha:g}"}
        told |= {"relative_to": Path(relative_to.name).name, "norm": norm} if relative_to else {}
        told |= {} if base is None else {"base": Path(base.name).name, "dora": dora}
        operation = Operation("resize", version, _resized(result.report), told)
        return edited_metadata(Source(inputs[0], source.metadata), operation, result)

    results = run_resize(adapter, resizing, placement=placement, progress=progress)
    return write_result(
        draft,
        results,
        describe,
        started=started,
        notes=lambda report: resize_notes(resizing, report),
    )


def _resized(report: Report) -> str:
    """What the training comment says: resized from 128 to 32."""
    layers = [one for one in report.layers if isinstance(one, EditReport) and not one.is_full]
    before = {one.was[0] for one in layers}
    after = {one.rank for one in layers}
    old, new = (str(*ranks) if len(ranks) == 1 else "dynamic" for ranks in (before, after))
    return f"resized from {old} to {new}"
