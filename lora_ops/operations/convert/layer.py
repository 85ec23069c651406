"""The layers of a conversion: rows moved, cut or joined, and written as the format holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch

from ...adapters.adapter import Adapter
from ...adapters.edited import base_bound, check_not_empty, edited, finite, skipped
from ...adapters.formats import Format, ModelNames
from ...adapters.layers import (
    DoraLayer,
    Layer,
    LoraLayer,
    ReshapedLayer,
    low_rank,
)
from ...adapters.repacking.assemble import assembled, blocks_of
from ...adapters.repacking.plan import RenamedLayer
from ...elements import Element
from ...errors import ArgumentError, UnsupportedLayerError
from ...linalg import factored_svd, thinned
from ...linalg.ranks.rules import RankRule
from ...linalg.storage import loadable, rounded
from ...run.devices import Placement, place, upload
from ...run.job import Job, Outcome, Work

NO_PLACE = "no place in the format"
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class Converting:
    """The request: what a conversion is to do.

    Attributes:
        format: The format of the result.
        names: Names of the model that the adapter is for.
        rule: How many directions a joined layer gets; None: all, exactly.
        element: What the numbers of the factors are to be; None: each layer's own.
        measures: Whether to read, and measure, also layers whose numbers are only moved.
        configured: Whether scales are in a configuration beside the file, as the file has no place.
    """

    format: Format
    names: ModelNames
    rule: RankRule | None = None
    element: Element | None = None
    measures: bool = False
    configured: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that is asked for, as torch has it."""
        return self.element.dtype if self.element else None


def convert_work(
    adapter: Adapter, pieces: Sequence[RenamedLayer], converting: Converting
) -> Work[RenamedLayer, Outcome[Layer]]:
    """Return the jobs of a conversion, a layer of the result each, and how they are done.

    A layer whose numbers are only moved is not measured, unless that is asked for: its report has
    norm 0 and residual 0.

    Args:
        adapter: Read layer by layer.
        pieces: From `planned`, of this adapter.
        converting: What is to be done.
    """
    check_not_empty(adapter)
    jobs = [Job(piece.module, piece, alike=piece.module) for piece in pieces]
    return Work(jobs, partial(_compute, adapter, converting))


def _compute(
    adapter: Adapter, converting: Converting, pieces: Sequence[RenamedLayer], where: Placement
) -> list[Outcome[Layer]]:
    return [_converted(adapter, piece, converting, where) for piece in pieces]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A layer that the format has no place for."""

    target: str


def with_left_out(
    work: Work[Item, Outcome[Layer]], adapter: Adapter, targets: Sequence[str]
) -> Work[Any, Outcome[Layer]]:
    """Return work with layers behind it that are left out, of which it says how much is lost.

    Args:
        work: Of the others.
        adapter: Read layer by layer.
        targets: From `unplaced`, of this adapter.

    Raises, when it is done:
        NonFiniteError: A layer holds NaN or infinity.
    """
    left = [Job(target, LeftOut(target), alike=("left out", target)) for target in targets]
    jobs: list[Job[Any]] = [*work.jobs, *left]
    return Work(jobs, partial(_compute_or_leave_out, work.compute, adapter.layers))


def _compute_or_leave_out(
    compute: Callable[[Sequence[Item], Placement], Sequence[Outcome[Layer]]],
    layers: Mapping[str, Layer],
    items: Sequence[Item | LeftOut],
    where: Placement,
) -> Sequence[Outcome[Layer]]:
    left = [one.target for one in items if isinstance(one, LeftOut)]
    if left:  # alone, for they are alike to nothing else
        return [_left_out(target, layers[target]) for target in left]
    return compute(cast("Sequence[Item]", items), where)


def _left_out(target: str, layer: Layer) -> Outcome[Layer]:
    norm = finite(torch.linalg.vector_norm(layer.delta(torch.float64)), target, layer)
    return skipped(target, layer, NO_PLACE, norm)


def _converted(
    adapter: Adapter, piece: RenamedLayer, converting: Converting, where: Placement
) -> Outcome[Layer]:
    blocks = blocks_of(adapter, piece, converting.names)
    whole = assembled(blocks, piece)
    result = written_as(whole, piece, converting, where)
    was = max(block.layer.rank for block in blocks)
    moved = all((b.layer.scale, b.layer.dtype) == (whole.scale, whole.dtype) for b in blocks)
    if moved and _has_numbers_of(whole, result) and not converting.measures:
        return edited(piece.module, result, norm=0.0, residual=0.0, was=(was,))
    exact = assembled(blocks, piece, torch.float64)  # a single block is exact as it is
    norm = finite(_factors_in(exact).norm(), piece.module, whole)
    # Of DoRA, that of the inner change; of what is made from the weight, that of the stored numbers.
    residual = _factors_in(exact).missed(_factors_in(result))
    return edited(piece.module, result, norm=norm, residual=residual, was=(was,))


def written_as(
    layer: Layer, piece: RenamedLayer, converting: Converting, where: Placement | None = None
) -> Layer:
    """The layer as the format holds it, in the dtype that is asked for; None: nowhere is one decomposed."""
    formed = _formed(layer, piece, converting, where)
    dtype = converting.dtype
    return formed if dtype is None else formed.in_dtype(piece.module, dtype)


def _formed(
    layer: Layer, piece: RenamedLayer, converting: Converting, where: Placement | None
) -> Layer:
    """The layer as the format holds it."""
    format, target = converting.format, piece.module
    if layer.is_peft_only:
        raise base_bound(target, layer)
    if isinstance(layer, DoraLayer):
        return _magnified(layer, _formed(layer.inner, piece, converting, where), format, target)
    if isinstance(layer, ReshapedLayer):
        return layer
    if isinstance(layer, LoraLayer) and piece.is_joined and converting.rule is not None:
        layer = _lowered(layer, converting.rule, target, where or place("cpu"))
    if format.needs_alpha:
        layer = layer.with_alpha()
    return layer.times(target, 1.0, has_alpha=format.keeps_alpha or converting.configured)


def _magnified(layer: DoraLayer, inner: Layer, format: Format, target: str) -> DoraLayer:
    """The magnitudes over the inner layer as it is written, in the format's form.

    Raises:
        UnsupportedLayerError: They lie along the input, for which PEFT has no place.
    """
    axes = len(layer.shape)
    if format.keeps_alpha:
        return DoraLayer(inner, layer.dora_scale)
    if layer.axis == 1 or not isinstance(inner, LoraLayer):
        raise UnsupportedLayerError(
            f"format `{format.name}` has no place for layer `{target}`, {layer.title} with a "
            'magnitude for each input; convert it `to="lora"` first',
            target=target,
        )
    form = (1, -1, *(1 for _ in layer.shape[2:])) if axes > 2 else (-1,)
    return DoraLayer(inner, layer.magnitude.reshape(form), "magnitude")


def _lowered(layer: LoraLayer, rule: RankRule, target: str, where: Placement) -> LoraLayer:
    """The best approximation of a joined layer at the rank of the rule.

    Raises:
        ArgumentError: The rule gives it rank 0.
    """
    own = rule.for_kernel(layer.shape[2:])
    if own.kind == "rank" and own.value >= layer.rank:
        return layer
    svd = factored_svd(*thinned(*(upload(factor, where) for factor in layer.factors())))
    rank = own.choose(svd.s, float(svd.s.square().sum()), len(svd.s)) if own.value else 0
    held = min(rank or 0, int((svd.s > 0).sum()))
    if not held:
        raise ArgumentError(f"rank rule `{rule}` leaves nothing of layer `{target}`", target=target)
    up, down = (rounded(f, loadable(layer.dtype), target) for f in svd.factors(held))
    return low_rank(up, down, layer.shape, alpha=float(held))


def _has_numbers_of(layer: Layer, result: Layer) -> bool:
    """Whether the result has the very tensors and the scale of a layer."""
    mine, theirs = _factors_in(layer).tensors(), _factors_in(result).tensors()
    return layer.scale == result.scale and all(
        theirs.get(role) is tensor for role, tensor in mine.items() if role != "alpha"
    )


def _factors_in(layer: Layer) -> Layer:
    """The layer that is computed with: DoRA's inner one, as magnitudes are only moved."""
    return layer.inner if isinstance(layer, DoraLayer) else layer
