"""One layer at another rank: cut from its factors, or from its change where that is multiplied out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...adapters.edited import ZERO, edited, finite, has_numbers_of, skipped
from ...adapters.layers import (
    BasedDoraLayer,
    Layer,
    LoraLayer,
    MadeLayer,
    innermost,
    low_rank,
    rewrapped,
    stored_alpha,
)
from ...elements import Element
from ...errors import ArgumentError
from ...linalg import FactoredSvd, frobenius
from ...linalg.moments import Moment, weighted_factors, weighted_product
from ...linalg.ranks.budgets import Budget
from ...linalg.ranks.rules import RankRule
from ...linalg.ranks.truncation import truncated
from ...linalg.storage import loadable, rounded
from ...report import Skip, Weighted
from ...run.job import Outcome
from ..reasons import RANK_ZERO
from .decomposed import Decomposed, Dense, Whole
from .recorded import Recorded


@dataclass(frozen=True, slots=True)
class Resizing:
    """What a resize is told.

    Attributes:
        rule: How many directions a layer gets, or what all of them may take together.
        alpha: The number to store, with the factors made up for it; None: the new rank where one is
            lowered, and none where the layer had none. Of LoRA layers: a LoHa or LoKr that stays one
            keeps its own.
        element: What the numbers of the factors are to be; None: each layer's own; where a rank is lowered, one that every loader
            reads.
        weights: What the singular values of a layer are multiplied by before a budget compares
            them, by target; 1 where it is not named.
        overhead: Bytes of the file that are no layer's, for a budget of its size.
        has_alpha: Whether the file has a place for alpha; else scale is in the factors.
        needs_alpha: Whether every layer has to have one.
        exact: Whether a change that is multiplied out gets the exact truncation instead of one
            within 1e-3 of its error; from factors it always is exact.
        recorded: What goes into the layers; None: nobody knows.

    Raises:
        ArgumentError: Alpha is not above 0.
    """

    rule: RankRule | Budget
    alpha: float | None = None
    element: Element | None = None
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    overhead: int = 0
    has_alpha: bool = True
    needs_alpha: bool = False
    exact: bool = False
    recorded: Recorded | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ArgumentError(f"alpha {self.alpha}: give a number above 0, such as 16")
        if self.alpha is not None and not self.has_alpha:
            raise ArgumentError(
                "files named as PEFT and diffusers name them have no place for an alpha; leave it out"
            )

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that is asked for, as torch has it."""
        return self.element.dtype if self.element else None


def resized(known: Decomposed, resizing: Resizing, rank: int | None) -> Outcome[Layer]:
    """Return one layer at its rank; `rank` is a budget's, None where the rule is to choose."""
    target, layer, s = known.target, known.layer, known.s
    total = s.square().sum()
    norm = finite(total.sqrt(), target, layer)
    if norm == 0:
        return skipped(target, layer, ZERO, norm)
    if rank is None and isinstance(resizing.rule, RankRule):
        rank = _chosen(resizing.rule.for_kernel(layer.shape[2:]), s, float(total))
    if not rank:
        return skipped(target, layer, RANK_ZERO, norm)
    plain = innermost(layer)
    has_core = isinstance(plain, LoraLayer) and not plain.is_pair
    if rank >= layer.rank and not has_core and not isinstance(plain, MadeLayer):
        result = rewrapped(_kept(target, plain, resizing), layer)
        residual = 0.0 if has_numbers_of(result, layer) else _missed(known, result, total)
    else:
        # Directions at rounding level are zero in `s`: no rank is spent on them.
        held = min(rank, int((s > 0).sum()))
        result = _written(target, layer, known.svd.factors(held), resizing)
        residual = _missed(known, result, total)
    return edited(target, result, norm=norm, residual=residual, was=(layer.rank,), made_of=(layer,))


def _chosen(rule: RankRule, s: Tensor, total: float) -> int | None:
    if rule.leaves_out:
        return None
    return rule.choose(s, total, len(s))


def cut(known: Dense, resizing: Resizing, rank: int | None) -> Outcome[Layer]:
    """Return one layer that is multiplied out at its rank, chosen as for `resized`."""
    target, layer = known.target, known.layer
    norm = finite(known.total.sqrt(), target, layer)
    if norm == 0:
        return skipped(target, layer, ZERO, norm)
    rule = RankRule("rank", rank or 0)
    if rank is None and isinstance(resizing.rule, RankRule):
        rule = resizing.rule.for_kernel(layer.shape[2:])
    if rule.leaves_out:
        return skipped(target, layer, RANK_ZERO, norm)
    exact = resizing.exact or rank is not None  # a budget's bound leaves no room
    (svd,) = truncated(known.matrix[None], known.total[None], rule, exact=exact)
    result = _written(target, layer, svd.factors(), resizing)
    up, down = (factor.to(known.matrix.device) for factor in result.factors())
    residual = float(frobenius(torch.addmm(known.matrix, up, down, alpha=-1)))
    return edited(target, result, norm=norm, residual=residual, was=(layer.rank,), made_of=(layer,))


def weighed(known: Decomposed | Dense, resizing: Resizing, moment: Moment) -> Outcome[Layer]:
    """Return one layer at the rank of a rule whose output is closest to its own.

    Args:
        known: With its change.
        resizing: With a rule that chooses by one layer.
        moment: Of the inputs that were recorded.
    """
    target, layer = known.target, known.layer
    svd = None if isinstance(known, Dense) else known.svd
    delta = layer.delta().flatten(1) if isinstance(known, Decomposed) else known.matrix
    norm = finite(frobenius(delta), target, layer)
    rule = resizing.rule
    if norm == 0:
        return skipped(target, layer, ZERO, norm)
    if not isinstance(rule, RankRule) or rule.for_kernel(layer.shape[2:]).leaves_out:
        return skipped(target, layer, RANK_ZERO, norm)
    rule = rule.for_kernel(layer.shape[2:])
    if isinstance(svd, FactoredSvd):
        factors = weighted_product(svd.up, svd.down, moment, rule)
    else:
        factors = weighted_factors(delta, moment, rule, exact=resizing.exact)
    plain = innermost(layer)
    has_core = isinstance(plain, LoraLayer) and not plain.is_pair
    if factors[0].shape[1] >= layer.rank and not has_core and not isinstance(plain, MadeLayer):
        result = rewrapped(_kept(target, plain, resizing), layer)
    else:
        result = _written(target, layer, factors, resizing)
    left = delta - result.delta().flatten(1).to(delta)
    return edited(
        *(target, result),
        norm=norm,
        residual=float(frobenius(left)),
        was=(layer.rank,),
        made_of=(layer,),
        weighted=Weighted(moment.norm(delta), moment.norm(left)),
    )


def remeasured(found: Outcome[Layer], layer: Layer) -> Outcome[Layer]:
    """Return a DoRA, whose inner change was cut, with the error of its whole change.

    One whose inner change is zero is kept: its magnitudes may change the weight.

    Args:
        found: What became of the inner change.
        layer: As it was read; of any other kind `found` is right.
    """
    if not isinstance(layer, BasedDoraLayer):
        return found
    report, inner = found.report, found.value
    if isinstance(report, Skip) and report.reason == ZERO:
        inner = layer.inner
    if inner is None:
        norm, _ = layer.measured(layer)
        return skipped(found.name, layer, RANK_ZERO, norm)
    result = layer.over(inner)
    norm, residual = layer.measured(result)
    kind = layer.inner.title if inner.title != layer.inner.title else ""
    return edited(
        *(found.name, result), norm=norm, residual=residual, was=(layer.rank,), from_kind=kind
    )


def _written(
    target: str, layer: Layer, factors: tuple[Tensor, Tensor], resizing: Resizing
) -> Layer:
    """A LoRA with these factors in place of a layer, with the alpha that is wanted."""
    rank = factors[0].shape[1]
    has_one = stored_alpha(layer) is not None or isinstance(innermost(layer), MadeLayer)
    alpha = resizing.alpha
    if alpha is None and (has_one or resizing.needs_alpha) and resizing.has_alpha:
        alpha = float(rank)
    gain = 1.0 if alpha is None else math.sqrt(rank / alpha)
    dtype = resizing.dtype or loadable(layer.dtype)
    up, down = (rounded(factor * gain, dtype, target) for factor in factors)
    return rewrapped(low_rank(up, down, layer.shape, alpha), layer)


def _kept(target: str, layer: Layer, resizing: Resizing) -> Layer:
    """The layer itself, unless another alpha or dtype is asked for."""
    if not isinstance(layer, LoraLayer):
        return in_dtype(target, layer, resizing.dtype)
    alpha = layer.alpha if resizing.alpha is None else resizing.alpha
    if alpha is None and resizing.needs_alpha:
        alpha = float(layer.rank)
    alpha = alpha if resizing.has_alpha else None
    scale = 1.0 if alpha is None else alpha / layer.rank
    gain = 1.0 if alpha == layer.alpha else layer.scale / scale
    if gain == 1 and all(resizing.dtype in (None, one.dtype) for one in (layer.up, layer.down)):
        return replace(layer, alpha=alpha)
    # Without an alpha all of it goes into up, as `scale` and `convert` do: down keeps its bits.
    root, dtype = math.sqrt(abs(gain)), resizing.dtype or loadable(layer.dtype)
    gains = (math.copysign(root, gain), root) if resizing.has_alpha else (gain, 1.0)
    up = rounded(layer.up.double() * gains[0], dtype, target)
    down = rounded(layer.down.double() * gains[1], dtype, target)
    return replace(layer, up=up, down=down, alpha=alpha)


def in_dtype(target: str, layer: Layer, dtype: torch.dtype | None) -> Layer:
    """Return a layer with its numbers rounded, or itself where they need not be.

    Raises:
        NonFiniteError: A number is beyond the range of the dtype.
    """
    if dtype is None or all(one.dtype == dtype for one in layer.stored_numbers().values()):
        return layer
    return layer.in_dtype(target, dtype)


def _missed(known: Decomposed, result: Layer, total: Tensor) -> float:
    """Frobenius norm of the change less what is written."""
    before, after = innermost(known.layer), innermost(result)
    if before.kronecker() is not None and after.kronecker() is not None:
        return before.missed(after)
    return known.svd.missed(*after.factors(), total)


def whole(known: Whole, resizing: Resizing) -> Outcome[Layer]:
    """Return a layer that has no rank to lower."""
    target, layer = known.target, known.layer
    exact = layer.delta(torch.float64)
    norm = finite(torch.linalg.vector_norm(exact), target, layer)
    result = rewrapped(in_dtype(target, innermost(layer), resizing.dtype), layer)
    residual = float(torch.linalg.vector_norm(exact - result.delta(torch.float64)))
    return edited(target, result, norm=norm, residual=residual, was=(layer.rank,))
