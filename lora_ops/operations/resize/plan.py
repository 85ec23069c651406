"""The plan of a resize: what will be done to which layer, known from headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch

from ...adapters.adapter import Adapter
from ...adapters.base import base_weights
from ...adapters.changes import as_changes
from ...adapters.edited import EditReport, check_not_empty
from ...adapters.formats import decode, experts_apart, format_named
from ...adapters.layers import (
    Convention,
    FullLayer,
    Layer,
    LoraLayer,
    MadeLayer,
    innermost,
)
from ...adapters.metadata import Input, Operation, Result, Source, edited_metadata
from ...adapters.outline import HeaderOnlySource, outline
from ...elements import Element, asked
from ...files import FileSource, Output
from ...linalg.ranks.budgets import Budget, check_reach, parse_rule, spend
from ...linalg.ranks.comparing import compared_by
from ...linalg.ranks.rules import RankRule
from ...report import Report, Skip
from ...run.devices import Placement
from ...run.inputs import paths_of
from ...run.job import Outcome, Work
from ...source import TensorSource
from ..edit import EditPlan, Foreseen
from ..expert_stacks import check_budget
from ..output import draft_of
from ..peft_folder import check_written, keeps_alpha
from ..preview import PlannedLayer, planned_layer, planned_skip, stored_size
from ..reasons import RANK_ZERO
from .decomposed import all_directions, check_own
from .importance import importance_work, weighed
from .layer import Resizing
from .recorded import recorded
from .resize import FIXED, rank_size, resize_notes, resize_work

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ResizeOptions(TypedDict, total=False):
    """What a resize from file to file can be told beside its rule.

    Attributes:
        alpha: The number to store; None: the new rank.
        dtype: Of the factors; None: each layer's own.
        relative_to: The checkpoint whose weights a budget compares the changes with.
        norm: Of those weights: spectral, or frobenius. None: spectral.
        base: The checkpoint that it was trained on, for kinds that are made from the weight.
        dora: How to read such kinds where programs differ: paper, which is the default, or comfy;
            see docs/kinds.md.
        exact: Cut those exactly, not within 1e-3 of the least error.
        activations: Second moments of what goes into the layers, of `record`; not with budgets and a base.
        force: Whether the output may replace a file.
    """

    alpha: float | None
    dtype: torch.dtype | Element | None
    relative_to: TensorSource | None
    norm: str | None
    base: TensorSource | None
    dora: Convention
    exact: bool
    activations: TensorSource | None
    force: bool


def plan_resize_file(
    source: FileSource,
    output: Output,
    rule: str | int | RankRule | Budget,
    **options: Unpack[ResizeOptions],
) -> EditPlan:
    """Check everything that can be checked before the work begins, and plan it.

    Args:
        source: The adapter file.
        output: Where to.
        rule: See `ranks` and `budgets`; a size is that of the file as written.
        **options: See `ResizeOptions`.

    Raises:
        LoraOpsError: As `resize`, as far as headers tell; or the output cannot, or must not, be
            written.
    """
    relative_to, base = options.get("relative_to"), options.get("base")
    force, dora = options.get("force", False), options.get("dora", "paper")
    record = options.get("activations")
    check_written(output, paths_of(source, relative_to, base, record), source, force=force)
    chosen = parse_rule(rule)
    norm = compared_by(options.get("norm"), chosen, is_relative=relative_to is not None)
    if experts_apart(source) is not source:
        check_budget(chosen)
    adapter = decode(source, control=True)
    if base is not None:
        layers = decode(HeaderOnlySource(source, reads_alpha=False), control=True).layers
        weights = base_weights(adapter, layers, base, source.name)
        adapter = as_changes(adapter, layers, weights, dora, everything=False)
    draft = draft_of(source, adapter, output, force, (relative_to, base))
    if record is not None:
        draft = replace(draft, sources=(*draft.sources, record))
    weighing = importance_work(adapter.layers, relative_to, norm) if relative_to and norm else None
    resizing = Resizing(
        chosen,
        options.get("alpha"),
        asked(options.get("dtype")),
        overhead=draft.overhead,
        has_alpha=keeps_alpha(output, format_named(adapter.format), adapter.keys),
        exact=options.get("exact", False),
        recorded=recorded(record, outline(adapter.layers), draft.architecture, chosen, base),
    )
    settings = {"rank": str(chosen)}
    settings |= {} if resizing.alpha is None else {"alpha": f"{resizing.alpha:g}"}
    if relative_to is not None and norm is not None:
        settings |= {"relative_to": Path(relative_to.name).name, "norm": norm}
    settings |= {} if record is None else {"activations": Path(record.name).name}
    settings |= {} if base is None else {"base": Path(base.name).name, "dora": dora}
    return EditPlan(
        draft,
        partial(_work, adapter, resizing, weighing),
        partial(_describe, source.metadata, settings),
        partial(foresee_resize, adapter, resizing),
        f"rank rule {chosen}",
        settings,
        [Path(one.name).name for one in (source, relative_to, base, record) if one is not None],
        partial(resize_notes, resizing),
    )


def _work(
    adapter: Adapter,
    resizing: Resizing,
    weighing: Work[str, float] | None,
    placement: Placement,
) -> Work[str, Outcome[Layer]]:
    """The jobs, once the weights that changes are compared with are known."""
    if weighing is not None:
        resizing = replace(resizing, weights=weighed(weighing))
    return resize_work(adapter, resizing, placement)


def _describe(
    metadata: Mapping[str, str],
    settings: Mapping[str, str],
    version: str,
    inputs: Sequence[Input],
    result: Result,
) -> dict[str, str]:
    if "activations" in settings:
        settings = {**settings, "activations_sha256": inputs[-1].sha256}
    operation = Operation("resize", version, _summary(result.report), settings)
    return edited_metadata(Source(inputs[0], metadata), operation, result)


def _summary(report: Report) -> str:
    """For the training comment: resized from 128 to 32."""
    layers = [one for one in report.layers if isinstance(one, EditReport) and not one.is_full]
    before = {one.was[0] for one in layers}
    after = {one.rank for one in layers}
    old, new = (str(*ranks) if len(ranks) == 1 else "dynamic" for ranks in (before, after))
    return f"resized from {old} to {new}"


def foresee_resize(adapter: Adapter, resizing: Resizing) -> Foreseen:
    """Say what will become of the layers, from headers alone.

    Args:
        adapter: Whose.
        resizing: What is to be done.

    Raises:
        UnsupportedLayerError: A layer is made from the base weight, which is not given.
        ArgumentError: A budget, and no layer has factors to spend it on.
        UnknownFormatError: There are no layers.
    """
    check_not_empty(adapter)
    planned: list[PlannedLayer] = []
    skips: list[Skip] = []
    size, has_factors = 0, False
    least = math.inf
    for target, layer in outline(adapter.layers).items():
        if isinstance(innermost(layer), FullLayer) and not layer.needs_base:
            size += stored_size(layer, resizing.element)
            planned.append(planned_layer(target, layer, "kept"))
            continue
        check_own(target, layer)
        has_factors = True
        rank, is_kept = _most(layer, resizing.rule)
        if not rank:
            skips.append(planned_skip(target, layer, RANK_ZERO))
            continue
        done = "kept" if is_kept else "cut"
        if not is_kept and not isinstance(innermost(layer), LoraLayer):
            done = "made LoRA"
        planned.append(planned_layer(target, layer, done, rank))
        one = rank_size(layer, resizing.element)
        least = min(least, one + FIXED + _around(layer))
        factors = rank * one + FIXED
        whole = stored_size(layer, resizing.element) if is_kept or rank >= layer.rank else 0
        size += max(factors + _around(layer), whole)
    if isinstance(resizing.rule, Budget) and not has_factors:
        spend(resizing.rule, [])  # which says that there is nothing to spend it on
    if isinstance(resizing.rule, Budget) and has_factors:
        check_reach(resizing.rule, int(least), overhead=resizing.overhead)
    if isinstance(resizing.rule, Budget) and resizing.rule.kind == "size":
        size = min(size, int(resizing.rule.value) - resizing.overhead)
    return Foreseen(planned, size, skips)


def _most(layer: Layer, rule: RankRule | Budget) -> tuple[int, bool]:
    """The largest rank that a layer can get, and whether it is sure to stay what it is."""
    full, kernel = all_directions(layer), layer.shape[2:]
    own = rule.rule_for(kernel) if isinstance(rule, Budget) else rule.for_kernel(kernel)
    if own is None:
        return min(full, rule.most or full), False
    if own.leaves_out:
        return 0, False
    if own.kind != "rank":
        return min(full, own.most or full), False
    plain, rank = innermost(layer), own.first_guess(full)
    has_core = isinstance(plain, LoraLayer) and plain.mid is not None
    return rank, rank >= layer.rank and not has_core and not isinstance(plain, MadeLayer)


def _around(layer: Layer) -> int:
    """Bytes of what a layer has around its factors, which stays."""
    around = ("dora_scale", "magnitude", "reshape_weight")
    return sum(one.nbytes for role, one in layer.tensors().items() if role in around)
