"""Layers at other ranks: cut from their factors, or from their change where that is multiplied out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
from ...linalg import frobenius
from ...linalg.ranks.budgets import Budget
from ...linalg.ranks.rules import RankRule
from ...linalg.ranks.truncation import truncated
from ...linalg.storage import loadable, rounded
from ...report import Skip
from ...run.devices import download
from ...run.job import Outcome
from ..reasons import RANK_ZERO
from .decomposed import Decomposed, Dense, Whole, stacked
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


def resized(
    batch: Sequence[Decomposed], resizing: Resizing, ranks: Mapping[str, int]
) -> list[Outcome[Layer]]:
    """Return layers at their ranks; `ranks` are a budget's, empty where the rule is to choose."""
    norms: dict[str, float] = {}
    outcomes: dict[str, Outcome[Layer]] = {}
    results: dict[str, Layer] = {}
    missed: dict[str, Tensor] = {}
    lowered: list[Decomposed] = []
    factors: list[tuple[Tensor, Tensor]] = []
    for known in batch:
        target, layer, s = known.target, known.layer, known.s
        total = s.square().sum()
        norm = norms[target] = finite(total.sqrt(), target, layer)
        rank = ranks.get(target)
        if norm and rank is None and isinstance(resizing.rule, RankRule):
            rank = _chosen(resizing.rule.for_kernel(layer.shape[2:]), s, float(total))
        if not norm or not rank:
            outcomes[target] = skipped(target, layer, RANK_ZERO if norm else ZERO, norm)
        elif rank >= layer.rank and can_stay(layer):
            result = results[target] = rewrapped(kept(target, innermost(layer), resizing), layer)
            if not has_numbers_of(result, layer):
                missed[target] = _missed(known, innermost(result), total)
        else:
            # Directions at rounding level are zero in `s`: no rank is spent on them.
            factors.append(known.svd.factors(min(rank, int((s > 0).sum()))))
            lowered.append(known)
    for known, (result, there) in zip(lowered, written(lowered, factors, resizing), strict=True):
        results[known.target] = result
        missed[known.target] = _missed(known, there, known.s.square().sum())
    residuals = _numbers(missed)
    for known in batch:
        if (result := results.get(known.target)) is not None:
            outcomes[known.target] = edited(
                *(known.target, result),
                norm=norms[known.target],
                residual=residuals.get(known.target, 0.0),
                was=(known.layer.rank,),
                made_of=(known.layer,),
            )
    return [outcomes[known.target] for known in batch]


def _chosen(rule: RankRule, s: Tensor, total: float) -> int | None:
    if rule.leaves_out:
        return None
    return rule.choose(s, total, len(s))


def cut(
    batch: Sequence[Dense], resizing: Resizing, ranks: Mapping[str, int]
) -> list[Outcome[Layer]]:
    """Return layers that are multiplied out at their ranks, chosen as for `resized`."""
    norms = _numbers({known.target: known.total.sqrt() for known in batch})
    outcomes: dict[str, Outcome[Layer]] = {}
    alike: defaultdict[RankRule, list[Dense]] = defaultdict(list)
    for known in batch:
        target, layer = known.target, known.layer
        norm, rank = finite(norms[target], target, layer), ranks.get(target)
        rule = RankRule("rank", rank or 0)
        if rank is None and isinstance(resizing.rule, RankRule):
            rule = resizing.rule.for_kernel(layer.shape[2:])
        if norm and not rule.leaves_out:
            alike[rule].append(known)
        else:
            outcomes[target] = skipped(target, layer, RANK_ZERO if norm else ZERO, norm)
    for rule, group in alike.items():
        stack = stacked([known.matrix for known in group])
        totals = torch.stack([known.total for known in group])
        exact = resizing.exact or bool(ranks)  # a budget's bound leaves no room
        svds = truncated(stack, totals, rule, exact=exact)
        made = list(written(group, [svd.factors() for svd in svds], resizing))
        residuals = _numbers(
            {
                known.target: frobenius(torch.addmm(known.matrix, *there.factors(), alpha=-1))
                for known, (_, there) in zip(group, made, strict=True)
            }
        )
        for known, (result, _) in zip(group, made, strict=True):
            outcomes[known.target] = edited(
                *(known.target, result),
                norm=norms[known.target],
                residual=residuals[known.target],
                was=(known.layer.rank,),
                made_of=(known.layer,),
            )
    return [outcomes[known.target] for known in batch]


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


def can_stay(layer: Layer) -> bool:
    """Whether it has factors that a file can hold: a core is multiplied out, and what is made is written."""
    plain = innermost(layer)
    has_core = isinstance(plain, LoraLayer) and not plain.is_pair
    return not has_core and not isinstance(plain, MadeLayer)


def written(
    batch: Sequence[Decomposed | Dense],
    factors: Sequence[tuple[Tensor, Tensor]],
    resizing: Resizing,
) -> Iterator[tuple[Layer, LoraLayer]]:
    """LoRA with these factors in place of layers, with the alpha that is wanted.

    Yields:
        Each layer, on the CPU; and its LoRA where the factors are.
    """
    exact: list[Tensor] = []
    there: list[LoraLayer] = []
    for known, pair in zip(batch, factors, strict=True):
        layer, rank = known.layer, pair[0].shape[1]
        has_one = stored_alpha(layer) is not None or isinstance(innermost(layer), MadeLayer)
        alpha = resizing.alpha
        if alpha is None and (has_one or resizing.needs_alpha) and resizing.has_alpha:
            alpha = float(rank)
        gain = 1.0 if alpha is None else math.sqrt(rank / alpha)
        dtype = resizing.dtype or loadable(layer.dtype)
        wanted = [factor * gain for factor in pair]
        exact += wanted
        up, down = (factor.to(dtype).contiguous() for factor in wanted)
        there.append(low_rank(up, down, layer.shape, alpha))
    if not there:
        return
    here = download([factor for one in there for factor in (one.up, one.down)])
    for index, (known, one) in enumerate(zip(batch, there, strict=True)):
        up, down = (
            rounded(here[at], one.up.dtype, known.target, exact[at])
            for at in (2 * index, 2 * index + 1)
        )
        yield rewrapped(replace(one, up=up, down=down), known.layer), one


def kept(target: str, layer: Layer, resizing: Resizing) -> Layer:
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


def _missed(known: Decomposed, after: Layer, total: Tensor) -> Tensor:
    """Frobenius norm of the change less what is written, wherever it was computed."""
    before = innermost(known.layer)
    if before.kronecker() is not None and after.kronecker() is not None:
        return torch.tensor(before.missed(after), dtype=torch.float64)
    return known.svd.missed(*after.factors(), total)


def _numbers(found: Mapping[str, Tensor]) -> dict[str, float]:
    """Single numbers by target: a device is waited for once."""
    if not found:
        return {}
    return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))


def whole(known: Whole, resizing: Resizing) -> Outcome[Layer]:
    """Return a layer that has no rank to lower."""
    target, layer = known.target, known.layer
    exact = layer.delta(torch.float64)
    norm = finite(torch.linalg.vector_norm(exact), target, layer)
    result = rewrapped(in_dtype(target, innermost(layer), resizing.dtype), layer)
    residual = float(torch.linalg.vector_norm(exact - result.delta(torch.float64)))
    return edited(target, result, norm=norm, residual=residual, was=(layer.rank,))
