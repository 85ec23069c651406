"""The layers of a conversion: rows moved, cut or joined, and written as the format holds them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ...adapters.adapter import Adapter, LazyLayers
from ...adapters.edited import Edited, base_bound, check_not_empty, edited, finite, skipped
from ...adapters.formats import Format, ModelNames
from ...adapters.layers import (
    DoraLayer,
    Layer,
    LoraLayer,
    ReshapedLayer,
    low_rank,
)
from ...adapters.repacking.assemble import assembled, blocks_of
from ...adapters.repacking.plan import Piece
from ...errors import ArgumentError, UnsupportedLayerError
from ...linalg import factored_svd, thinned
from ...linalg.ranks.rules import RankRule
from ...linalg.storage import loadable, rounded
from ...run.devices import Placement, place, upload
from ...run.workers import Progress, counted_off, ordered_map

NO_PLACE = "no place in the format"
_WORKERS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Converting:
    """What a conversion is told.

    Attributes:
        format: That of the result.
        names: Of the model that the adapter is for.
        rule: How many directions a joined layer gets; None: all, exactly.
        dtype: Of the factors; None: each layer's own.
        measures: Whether layers are looked at whose numbers are only moved, to be weighed.
        configured: Whether a configuration beside the file has scales, for which it has no place.
    """

    format: Format
    names: ModelNames
    rule: RankRule | None = None
    dtype: torch.dtype | None = None
    measures: bool = False
    configured: bool = False


def run_convert(
    adapter: Adapter,
    pieces: Sequence[Piece],
    converting: Converting,
    *,
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> Iterator[Edited]:
    """Yield each layer of the result, in the order of the pieces.

    A layer whose numbers are only moved is not looked at, unless it is to be weighed: its report has
    norm 0 and residual 0.

    Args:
        adapter: Read layer by layer.
        pieces: From `planned`, of this adapter.
        converting: What is to be done.
        placement: Where to compute; None: the CPU.
        progress: Called after each layer.
    """
    check_not_empty(adapter)
    where = placement or place("cpu")

    def job(piece: Piece) -> Edited:
        with where.scope():
            return _converted(adapter, piece, converting, where)

    yield from counted_off(ordered_map(job, pieces, _WORKERS), len(pieces), progress)


def left_out(adapter: Adapter, targets: Iterable[str]) -> Iterator[Edited]:
    """Yield layers that the format has no place for, with the size of what is lost.

    Args:
        adapter: Read layer by layer.
        targets: From `unplaced`, of this adapter.

    Raises:
        NonFiniteError: A layer holds NaN or infinity.
    """
    for target in targets:
        layer = adapter.layers[target]
        norm = finite(torch.linalg.vector_norm(layer.delta(torch.float64)), target, layer)
        yield skipped(target, layer, NO_PLACE, norm)


def without(adapter: Adapter, targets: Collection[str]) -> Adapter:
    """Return an adapter without some of its layers."""
    if not targets:
        return adapter
    kept = [target for target in adapter.layers if target not in targets]
    return replace(adapter, layers=LazyLayers(kept, adapter.layers.__getitem__))


def _converted(adapter: Adapter, piece: Piece, converting: Converting, where: Placement) -> Edited:
    blocks = blocks_of(adapter, piece, converting.names)
    whole = assembled(blocks, piece)
    result = _written(whole, piece, converting, where)
    was = max(block.layer.rank for block in blocks)
    moved = all((b.layer.scale, b.layer.dtype) == (whole.scale, whole.dtype) for b in blocks)
    if moved and _has_numbers_of(whole, result) and not converting.measures:
        return edited(piece.module, result, norm=0.0, residual=0.0, was=(was,))
    exact = assembled(blocks, piece, torch.float64)  # a single block is exact as it is
    norm = finite(_factors_in(exact).norm(), piece.module, whole)
    # Of DoRA, that of the inner change; of what is made from the weight, that of the stored numbers.
    residual = _factors_in(exact).missed(_factors_in(result))
    return edited(piece.module, result, norm=norm, residual=residual, was=(was,))


def _written(layer: Layer, piece: Piece, converting: Converting, where: Placement) -> Layer:
    """The layer as the format holds it, in the dtype that is asked for."""
    formed = _formed(layer, piece, converting, where)
    dtype = converting.dtype
    return formed if dtype is None else formed.in_dtype(piece.module, dtype)


def _formed(layer: Layer, piece: Piece, converting: Converting, where: Placement) -> Layer:
    """The layer as the format holds it."""
    format, target = converting.format, piece.module
    if layer.is_peft_only:
        raise base_bound(target, layer)
    if isinstance(layer, DoraLayer):
        return _magnified(layer, _formed(layer.inner, piece, converting, where), format, target)
    if isinstance(layer, ReshapedLayer):
        return layer
    if isinstance(layer, LoraLayer) and piece.is_joined and converting.rule is not None:
        layer = _lowered(layer, converting.rule, target, where)
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
            "magnitude for each input; convert it `--to lora` first",
            target=target,
        )
    form = (1, -1, *(1 for _ in layer.shape[2:])) if axes > 2 else (-1,)
    return DoraLayer(inner, layer.magnitude.reshape(form), "magnitude")


def _lowered(layer: LoraLayer, rule: RankRule, target: str, where: Placement) -> LoraLayer:
    """The best approximation of a joined layer at the rank of the rule.

    Raises:
        ArgumentError: The rule leaves nothing of it.
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
    """What is computed with: of DoRA the inner layer, as magnitudes are only moved."""
    return layer.inner if isinstance(layer, DoraLayer) else layer
