"""Resize: the best approximation of every layer at a smaller rank, from its factors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .adapter import Adapter
from .budgets import Budget, LayerSpectrum, parse_rule, spend
from .decomposed import Decomposed, Whole, map_decomposed
from .devices import Placement, place
from .dtypes import loadable, rounded
from .edit import (
    ZERO,
    Edited,
    EditReport,
    all_keys,
    check_not_empty,
    collect,
    converted,
    edited,
    finite,
    has_numbers_of,
    skipped,
)
from .errors import ArgumentError
from .formats import format_named
from .layers import Layer, LoraLayer, innermost, low_rank, rewrapped, stored_alpha
from .linalg import FactoredSvd, distance
from .parallel import Progress, counted_off
from .ranks import RankRule
from .report import Report, counted

RANK_ZERO = "rank 0 by the rule"
# What a layer takes in a file beside its factors and its name: alpha.
_FIXED = 4


@dataclass(frozen=True, slots=True)
class Resizing:
    """What a resize is told.

    Attributes:
        rule: How many directions a layer gets, or what all of them may take together.
        alpha: The number to store, with the factors made up for it; None: the new rank where one is
            lowered, and none where the layer had none. Of LoRA layers: a LoHa or LoKr that stays one
            keeps its own.
        dtype: Of the factors; None: each layer's own; where a rank is lowered, one that every loader
            reads.
        weights: What the singular values of a layer are multiplied by before a budget compares
            them, by target; 1 where it is not named.
        overhead: Bytes of the file that are no layer's, for a budget of its size.
        has_alpha: Whether the file has a place for alpha; else scale is in the factors.

    Raises:
        ArgumentError: Alpha is not above 0.
    """

    rule: RankRule | Budget
    alpha: float | None = None
    dtype: torch.dtype | None = None
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    overhead: int = 0
    has_alpha: bool = True

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ArgumentError(f"alpha {self.alpha}: give a number above 0, such as 16")
        if self.alpha is not None and not self.has_alpha:
            raise ArgumentError(
                "files named as PEFT and diffusers name them have no place for an alpha; leave it out"
            )


def resize(
    adapter: Adapter,
    rule: str | int | RankRule | Budget,
    *,
    alpha: float | None = None,
    dtype: torch.dtype | None = None,
    weights: Mapping[str, float] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[Adapter, Report]:
    """Return the adapter at other ranks, its strength unchanged, and its report.

    Every layer becomes the best approximation of its rank (Eckart & Young, 1936). A layer whose
    rank is not lowered keeps its tensors; full differences are kept as they are. A LoHa or LoKr
    whose rank is lowered becomes a LoRA; the report says so.

    Args:
        adapter: Its layers are read one after another.
        rule: See `ranks` and `budgets`.
        alpha: The number to store; None: the new rank.
        dtype: Of the factors; None: each layer's own, see `Resizing`.
        weights: Importance of layers under a budget, by target.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        progress: Called after each layer.

    Raises:
        UnsupportedLayerError: A layer is made from the base weight, or of a kind that is not read.
        NonFiniteError: NaN or infinity in a factor, or out of the range of the dtype.
        MismatchError: No layer is left.
    """
    resizing = Resizing(
        parse_rule(rule),
        alpha,
        dtype,
        weights or {},
        has_alpha=format_named(adapter.format).keeps_alpha,
    )
    results = list(run_resize(adapter, resizing, placement=place(device), progress=progress))
    smaller, report = collect(adapter, results, keys=all_keys(adapter))
    return smaller, replace(report, notes=tuple(resize_notes(resizing, report)))


def run_resize(
    adapter: Adapter,
    resizing: Resizing,
    *,
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> Iterator[Edited]:
    """Yield what becomes of each layer.

    Args:
        adapter: Read layer by layer; twice where a budget wants all spectra first.
        resizing: What is to be done.
        placement: Where to compute; None: the CPU.
        progress: Called after each layer.
    """
    placement = placement or place("cpu")
    check_not_empty(adapter)
    ranks = _spent(adapter, resizing, placement)

    def job(known: Decomposed | Whole) -> Edited:
        if isinstance(known, Whole):
            return _whole(known.target, known.layer, resizing)
        return _resized(known, resizing, ranks.get(known.target))

    results = map_decomposed(adapter, job, placement)
    yield from counted_off(results, len(adapter.layers), progress)


def resize_notes(resizing: Resizing, report: Report) -> Iterator[str]:
    """What is worth a sentence: layers that changed their kind, or whose rank was asked to grow."""
    yield from converted(report)
    rule = resizing.rule
    if not isinstance(rule, RankRule):
        return
    layers = [one for one in report.layers if isinstance(one, EditReport) and not one.is_full]
    small = [one for one in layers if one.rank == one.was[0] < _asked(rule, one.shape[2:])]
    if small:
        yield (
            f"{counted(len(small), 'layer')} had less than the rank asked for: "
            "a higher one gains nothing, so the rank stays"
        )


def _asked(rule: RankRule, kernel: tuple[int, ...]) -> float:
    """The rank that a rule names; 0 where it looks at the layer."""
    own = rule.for_kernel(kernel)
    return min(own.value, own.most or math.inf) if own.kind == "rank" else 0


def _spent(adapter: Adapter, resizing: Resizing, placement: Placement) -> dict[str, int]:
    """Ranks by target where a budget decides; empty for a rule, which needs one layer at a time."""
    if isinstance(resizing.rule, RankRule):
        return {}

    def measured(known: Decomposed | Whole) -> tuple[str, LayerSpectrum | int]:
        if isinstance(known, Whole):
            return known.target, sum(
                numbers.numel() * (resizing.dtype or numbers.dtype).itemsize
                for numbers in known.layer.tensors().values()
            )
        found = LayerSpectrum(
            s=known.svd.s.cpu(),
            cost=_cost(known.layer, resizing.dtype),
            fixed=_FIXED,
            weight=resizing.weights.get(known.target, 1.0),
            kernel=known.layer.shape[2:],
        )
        return known.target, found

    found = dict(map_decomposed(adapter, measured, placement))
    spectra = {name: one for name, one in found.items() if isinstance(one, LayerSpectrum)}
    overhead = resizing.overhead + sum(one for one in found.values() if isinstance(one, int))
    ranks = spend(resizing.rule, list(spectra.values()), overhead=overhead)
    return dict(zip(spectra, ranks, strict=True))


def _cost(layer: Layer, dtype: torch.dtype | None) -> int:
    """Bytes of one rank of a layer, whether it is kept as it is or made anew."""
    numbers = layer.shape[0] + math.prod(layer.shape[1:])
    if dtype is not None:
        return numbers * dtype.itemsize
    plain = innermost(layer)
    # A core is never kept: it is multiplied out.
    kept = [plain.up, plain.down] if isinstance(plain, LoraLayer) else plain.tensors().values()
    stored = sum(one.nbytes for one in kept)
    return max(numbers * loadable(layer.dtype).itemsize, stored // layer.rank)


def _resized(known: Decomposed, resizing: Resizing, rank: int | None) -> Edited:
    """One layer at its rank; `rank` is a budget's, None where the rule is to choose."""
    target, layer, svd = known.target, known.layer, known.svd
    total = svd.s.square().sum()
    norm = finite(total.sqrt(), target, layer)
    if norm == 0:
        return skipped(target, layer, ZERO, norm)
    if rank is None and isinstance(resizing.rule, RankRule):
        rank = _chosen(resizing.rule.for_kernel(layer.shape[2:]), svd.s, float(total))
    if not rank:
        return skipped(target, layer, RANK_ZERO, norm)
    plain = innermost(layer)
    has_core = isinstance(plain, LoraLayer) and plain.mid is not None
    if rank >= layer.rank and not has_core:
        result = rewrapped(_kept(target, plain, resizing), layer)
    else:
        # Directions at rounding level are zero in `s`: no rank is spent on them.
        cut = _truncated(target, layer, svd, min(rank, int((svd.s > 0).sum())), resizing)
        result = rewrapped(cut, layer)
    residual = 0.0 if has_numbers_of(result, layer) else _missed(svd, result, total)
    return edited(target, result, norm=norm, residual=residual, was=(layer.rank,), made_of=(layer,))


def _chosen(rule: RankRule, s: Tensor, total: float) -> int | None:
    if rule.leaves_out:
        return None
    return rule.choose(s, total, len(s))


def _truncated(
    target: str, layer: Layer, svd: FactoredSvd, rank: int, resizing: Resizing
) -> LoraLayer:
    """The best approximation of a rank, with the alpha that is wanted."""
    alpha = resizing.alpha
    if alpha is None and stored_alpha(layer) is not None and resizing.has_alpha:
        alpha = float(rank)
    gain = 1.0 if alpha is None else math.sqrt(rank / alpha)
    dtype = resizing.dtype or loadable(layer.dtype)
    up, down = (rounded(factor * gain, dtype, target) for factor in svd.factors(rank))
    return low_rank(up, down, layer.shape, alpha)


def _kept(target: str, layer: Layer, resizing: Resizing) -> Layer:
    """The layer itself, unless another alpha or dtype is asked for."""
    if not isinstance(layer, LoraLayer):
        return _in_dtype(target, layer, resizing.dtype)
    alpha = layer.alpha if resizing.alpha is None else resizing.alpha
    alpha = alpha if resizing.has_alpha else None
    scale = 1.0 if alpha is None else alpha / layer.rank
    gain = 1.0 if alpha == layer.alpha else layer.scale / scale
    if gain == 1 and all(resizing.dtype in (None, one.dtype) for one in (layer.up, layer.down)):
        return replace(layer, alpha=alpha)
    root, dtype = math.sqrt(abs(gain)), resizing.dtype or loadable(layer.dtype)
    up = rounded(layer.up.double() * math.copysign(root, gain), dtype, target)
    down = rounded(layer.down.double() * root, dtype, target)
    return replace(layer, up=up, down=down, alpha=alpha)


def _in_dtype(target: str, layer: Layer, dtype: torch.dtype | None) -> Layer:
    """A layer whose tensors are called in a file as its fields are, rounded."""
    tensors = {role: one for role, one in layer.tensors().items() if role != "alpha"}
    if all(dtype in (None, one.dtype) for one in tensors.values()):
        return layer
    fields = {role: rounded(one, dtype or one.dtype, target) for role, one in tensors.items()}
    return replace(layer, **fields)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _missed(svd: FactoredSvd, result: Layer, total: Tensor) -> float:
    """Frobenius norm of the change less what is written."""
    up, down = (factor.to(svd.up.device) for factor in result.factors())
    return float(distance(svd.up, svd.down, up, down, square=total))


def _whole(target: str, layer: Layer, resizing: Resizing) -> Edited:
    """A layer that has no rank to lower."""
    exact = layer.delta(torch.float64)
    norm = finite(torch.linalg.vector_norm(exact), target, layer)
    result = rewrapped(_in_dtype(target, innermost(layer), resizing.dtype), layer)
    residual = float(torch.linalg.vector_norm(exact - result.delta(torch.float64)))
    return edited(target, result, norm=norm, residual=residual, was=(layer.rank,))
