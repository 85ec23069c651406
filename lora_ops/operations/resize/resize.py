"""Resize: the best approximation of every layer at a smaller rank, from its factors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...adapters.adapter import Adapter
from ...adapters.base import base_weights
from ...adapters.changes import as_changes
from ...adapters.edited import (
    ZERO,
    EditReport,
    all_keys,
    check_not_empty,
    collect,
    converted,
)
from ...adapters.formats import format_named
from ...adapters.layers import BasedDoraLayer, Convention, Layer, LoraLayer, MadeLayer, innermost
from ...adapters.model import recognised
from ...adapters.outline import outline
from ...elements import Element, asked, loadable
from ...linalg.ranks.budgets import Budget, LayerSpectrum, parse_rule, spend
from ...linalg.ranks.rules import RankRule
from ...report import Report, counted
from ...run.devices import Placement, place
from ...run.job import Outcome, Work
from ...run.stream import stream
from ...run.workers import Progress
from ...source import TensorSource
from ..reasons import RANK_ZERO, mean_notes, missed_notes, unrecorded
from .decomposed import Decomposed, Dense, PreparedLayer, Whole, decomposed_work, singular_values
from .layer import Resizing, cut, remeasured, resized, whole
from .recorded import recorded
from .weighed import weighed

# What a layer takes in a file beside its factors and its name: alpha.
FIXED = 4


def resize(
    adapter: Adapter,
    rule: str | int | RankRule | Budget,
    *,
    alpha: float | None = None,
    dtype: torch.dtype | None = None,
    weights: Mapping[str, float] | None = None,
    base: TensorSource | None = None,
    dora: Convention = "paper",
    exact: bool = False,
    activations: TensorSource | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[Adapter, Report]:
    """Return the adapter at other ranks, its strength unchanged, and its report.

    Every layer becomes the best approximation of its rank (Eckart & Young, 1936). A layer whose
    rank is not lowered keeps its tensors; full differences are kept as they are. A LoHa or LoKr
    whose rank is lowered becomes a LoRA, and so do OFT, IA3 and the like, which are made from the
    base weight; the report says so. DoRA stays DoRA over a smaller inner change: the rule looks at
    that, the error is of the whole change.

    Args:
        adapter: Its layers are read one after another.
        rule: See `ranks` and `budgets`.
        alpha: The number to store; None: the new rank.
        dtype: Of the factors; None: each layer's own, see `Resizing`.
        weights: Importance of layers under a budget, by target.
        base: The checkpoint that it was trained on, for layers that are made from the weight.
        dora: How to read such kinds where programs differ; see docs/kinds.md.
        exact: Cut those exactly, see `Resizing`.
        activations: Second moments of what goes into the layers, of `record`: the error of their output counts
            then. Not with budgets and a base.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        progress: Called after each layer.

    Raises:
        UnsupportedLayerError: A layer is made from the base weight, which is not given, or of a kind
            that is not read.
        NonFiniteError: NaN or infinity in a factor, or out of the range of the dtype.
        MismatchError: No layer is left, or the base is not the adapter's.
    """
    if base is not None:
        weights_of = base_weights(adapter, adapter.layers, base, "the adapter")
        adapter = as_changes(adapter, adapter.layers, weights_of, dora, everything=False)
    chosen = parse_rule(rule)
    model = recognised(adapter).certain if activations is not None else None
    resizing = Resizing(
        chosen,
        alpha,
        asked(dtype),
        weights or {},
        has_alpha=format_named(adapter.format).keeps_alpha,
        exact=exact,
        recorded=recorded(activations, outline(adapter.layers), model, chosen, base),
    )
    results = list(run_resize(adapter, resizing, placement=place(device), progress=progress))
    smaller, report = collect(adapter, results, keys=all_keys(adapter))
    return smaller, replace(report, notes=tuple(resize_notes(resizing, report)))


def resize_work(
    adapter: Adapter, resizing: Resizing, placement: Placement
) -> Work[str, Outcome[Layer]]:
    """Return the jobs of a resize, and how they are done; where a budget decides, once it has.

    Args:
        adapter: Read layer by layer; twice where a budget wants all spectra first.
        resizing: What is to be done.
        placement: Where spectra are computed.
    """
    check_not_empty(adapter)
    ranks = _spent(adapter, resizing, placement)
    return decomposed_work(adapter, partial(_resized, resizing, ranks))


def run_resize(
    adapter: Adapter,
    resizing: Resizing,
    *,
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> Iterator[Outcome[Layer]]:
    """Yield what becomes of each layer; layers that are stacked, stack by stack.

    Args:
        adapter: See `resize_work`.
        resizing: What is to be done.
        placement: Where to compute; None: the CPU.
        progress: Called after each layer.
    """
    where = placement or place("cpu")
    yield from stream(resize_work(adapter, resizing, where), where, progress=progress)


def _resized(
    resizing: Resizing, ranks: Mapping[str, int], batch: Sequence[PreparedLayer]
) -> list[Outcome[Layer]]:
    """A device is waited for at each answer that it gives, so that they are asked for all layers at once."""
    made: list[Outcome[Layer]] = []
    thin: list[Decomposed] = []
    dense: list[Dense] = []
    for known in batch:
        moment = None
        if resizing.recorded is not None:
            moment = resizing.recorded.moment(known.target)
        if isinstance(known, Whole):
            made.append(whole(known, resizing))
        elif moment is not None:
            made.append(weighed(known, resizing, moment))
        elif isinstance(known, Dense):
            dense.append(known)
        else:
            thin.append(known)
    made += cut(dense, resizing, ranks)
    for known, found in zip(thin, resized(thin, resizing, ranks), strict=True):
        made.append(remeasured(found, known.layer))
    outcomes = {one.name: one for one in made}
    return [outcomes[known.target] for known in batch]


def resize_notes(resizing: Resizing, report: Report) -> Iterator[str]:
    """Yield notes: layers that changed their kind, a rank that cannot grow, the average rank."""
    yield from converted(report)
    if resizing.recorded is not None:
        yield from unrecorded(
            [one for one in report.layers if isinstance(one, EditReport) and not one.is_full]
        )
    rule = resizing.rule
    layers = [one for one in report.layers if isinstance(one, EditReport) and not one.is_full]
    if not isinstance(rule, RankRule):
        none = sum(skip.reason in (RANK_ZERO, ZERO) for skip in report.skips)
        yield from mean_notes(rule, [one.rank for one in layers], none)
        yield from missed_notes(rule, layers, report.skips)
        return
    small = [one for one in layers if one.rank == one.was[0] < _asked(rule, one.shape[2:])]
    if small:
        yield (
            f"{counted(len(small), 'layer')} had less than the rank asked for: "
            "a higher one gains nothing, so the rank stays"
        )


def _asked(rule: RankRule, kernel: tuple[int, ...]) -> float:
    """The rank that a rule names; 0 for a rule that depends on the layer."""
    own = rule.for_kernel(kernel)
    return min(own.value, own.most or math.inf) if own.kind == "rank" else 0


def _spent(adapter: Adapter, resizing: Resizing, placement: Placement) -> dict[str, int]:
    """Ranks by target where a budget decides; empty for a rule, which needs one layer at a time."""
    if isinstance(resizing.rule, RankRule):
        return {}

    work = decomposed_work(adapter, partial(_measured, resizing))
    found = dict(stream(work, placement))
    spectra = {name: one for name, one in found.items() if isinstance(one, LayerSpectrum)}
    overhead = resizing.overhead + sum(one for one in found.values() if isinstance(one, int))
    ranks = spend(resizing.rule, list(spectra.values()), overhead=overhead)
    return dict(zip(spectra, ranks, strict=True))


def _measured(
    resizing: Resizing, batch: Sequence[PreparedLayer]
) -> list[tuple[str, LayerSpectrum | int]]:
    values = singular_values(batch)
    return [_counted(resizing, known, values.get(known.target)) for known in batch]


def _counted(
    resizing: Resizing, known: PreparedLayer, s: Tensor | None
) -> tuple[str, LayerSpectrum | int]:
    """What a budget has to know of a layer: its spectrum; of one without, its bytes."""
    if s is None:
        return known.target, sum(
            numbers.numel() * (resizing.dtype or numbers.dtype).itemsize
            for numbers in known.layer.tensors().values()
        )
    magnitudes = isinstance(known.layer, BasedDoraLayer) and known.layer.magnitude.nbytes
    found = LayerSpectrum(
        s=s,
        cost=rank_size(known.layer, resizing.element),
        fixed=FIXED + magnitudes,
        weight=resizing.weights.get(known.target, 1.0),
        kernel=known.layer.shape[2:],
    )
    return known.target, found


def rank_size(layer: Layer, element: Element | None) -> int:
    """Bytes of one rank of a layer, whether it is kept as it is or made anew."""
    numbers = layer.shape[0] + math.prod(layer.shape[1:])
    if element is not None:
        return numbers * element.bits // 8
    plain = innermost(layer)
    anew = numbers * loadable(layer.element).bits // 8
    if isinstance(plain, MadeLayer):
        return anew
    # A core is never kept: it is multiplied out.
    kept = [plain.up, plain.down] if isinstance(plain, LoraLayer) else plain.tensors().values()
    stored = sum(one.nbytes for one in kept)
    return max(anew, stored // layer.rank)
