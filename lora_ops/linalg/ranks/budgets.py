"""Rank budgets: ranks shared out across all layers, each where it gains most.

Beside the rules of `ranks`, which look at one layer at a time:

    size=50MB         a file of at most that size (kB, MB, GB; KiB, MiB, GiB; or bytes)
    mean=16           that rank on average over all layers, also those that get none
    total_error=0.1   relative Frobenius error over all layers at most that, in as few bytes as it takes

joined by commas with `min=` and `max=`, limits for each layer, and `conv=`, a rule of its own for
kernels larger than 1x1: what it chooses counts first, the other layers share the rest.

A rank gains its squared singular value (Eckart and Young, 1936), so the best set is found by taking
the largest gain per byte first, as elias-gaeros/resize_lora does. That is optimal where a rank costs
the same in every layer, and elsewhere at most one rank's gain short of the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import ArgumentError, NonFiniteError
from ...text import exact_size, parse_size
from .rules import BUDGETS, RULES, RankRule, parse_rank, split_rule

#: Singular values up to this share of the layer's largest are rounding: they never get a rank.
ROUNDING = 1e-7


@dataclass(frozen=True, slots=True)
class Budget:
    """How many ranks all layers get together.

    Attributes:
        kind: One of `size mean total_error`.
        value: Bytes of the file; ranks per layer; or a share of the norm.
        least: Ranks that each layer gets first, as far as it has so many directions.
        most: Never more than this in a layer, even if a `total_error` is then missed; None for no
            limit.
        conv: The rule for kernels larger than 1x1; None: they share in the budget like all others.
    """

    kind: str
    value: float
    least: int = 0
    most: int | None = None
    conv: RankRule | None = None

    def rule_for(self, kernel: tuple[int, ...]) -> RankRule | None:
        """The rule of its own that a layer with this kernel has, if any; `()` for a linear."""
        return self.conv if math.prod(kernel) > 1 else None

    def __str__(self) -> str:
        """The text form that `parse_rule` reads."""
        value = int(self.value) if self.value == int(self.value) else self.value
        text = exact_size(int(value)) if self.kind == "size" else repr(value)
        text = f"{self.kind}={text}"
        text += f",min={self.least}" if self.least > 0 else ""
        text += f",max={self.most}" if self.most is not None else ""
        return text + (f",conv={self.conv}" if self.conv is not None else "")


@dataclass(frozen=True, slots=True, eq=False)
class LayerSpectrum:
    """What a budget must know of a layer.

    Attributes:
        s: (k,) its singular values, descending, float64, on the CPU: all of them, or the leading ones, of
            which no more are given than there are.
        cost: Bytes of the file that each rank takes.
        fixed: Bytes that the layer takes besides, once it has any rank: names, alpha.
        weight: Its importance, above 0: the gains of layers are compared after their singular
            values are multiplied by it. Errors are always those of the true, unweighted change.
        kernel: `()` for a linear.
        rest: The squares of all singular values that are not in `s`, summed.

    Raises:
        NonFiniteError: A singular value is NaN or infinite.
        ArgumentError: The cost or the weight is not a finite number above 0.
    """

    s: Tensor
    cost: int
    fixed: int = 0
    weight: float = 1.0
    kernel: tuple[int, ...] = ()
    rest: float = 0.0

    def __post_init__(self) -> None:
        if not bool(self.s.isfinite().all()):
            raise NonFiniteError(
                "a singular value is NaN or infinite: the layer's factors are not finite"
            )
        if not (self.cost > 0 and 0 < self.weight < math.inf):
            raise ArgumentError(
                f"a layer costs {self.cost} bytes per rank and weighs {self.weight}; "
                "both must be finite and above 0"
            )


def parse_rule(text: str | int | RankRule | Budget, *, stored: bool = False) -> RankRule | Budget:
    """Read a rank rule or a budget from its text form; see the heads of this module and of `ranks`.

    `noise` is one only if the rule is for a difference of weights as they are stored: with `stored=True`.

    Raises:
        ArgumentError: Unknown name or a value out of range; names the nearest rule.
    """
    if isinstance(text, Budget):
        return text
    if isinstance(text, RankRule):
        return parse_rank(text, stored=stored)
    parts = split_rule(str(text), (*RULES, *BUDGETS))
    if parts.kind in RULES:
        return parse_rank(text, stored=stored)
    if parts.conv is not None and parts.conv.is_noise and stored:
        raise ArgumentError(
            f"`{text}`: a budget shares out by singular values alone, so `conv=` cannot be noise; give "
            "kernels another rule"
        )
    if parts.conv is not None:
        parse_rank(parts.conv)
    value = _VALUES[parts.kind](f"{parts.kind}={parts.number}", parts.number)
    return Budget(parts.kind, value, parts.least or 0, parts.most, parts.conv)


def spend(budget: Budget, layers: Sequence[LayerSpectrum], *, overhead: int = 0) -> list[int]:
    """Return the rank of each layer, in their order; 0 where the budget gives it nothing.

    Equal gains go to the layer that comes first.

    Args:
        budget: What there is to spend.
        layers: Everything that is to be written with a rank.
        overhead: Bytes of the file that are there whatever the ranks: header, metadata, extras.

    Raises:
        ArgumentError: Every layer is zero, or the budget does not reach for what `min=` and `conv=`
            claim, or for a single rank; says what would.
    """
    if not any(_directions(layer) for layer in layers):
        raise ArgumentError(
            f"none of {len(layers)} layers holds a change, so `{budget}` has nothing to share out; "
            "leave such a file as it is"
        )
    bounds = [_bounds(budget, layer) for layer in layers]
    if budget.kind == "total_error":
        return _shed(budget.value, layers, bounds)
    if budget.kind == "size":
        return _fill(budget, layers, bounds, spent=overhead, limit=int(budget.value))
    counted = [replace(layer, cost=1, fixed=0) for layer in layers]
    return _fill(budget, counted, bounds, spent=0, limit=round(budget.value * len(layers)))


def check_reach(budget: Budget, least: int, *, overhead: int) -> None:
    """Refuse a size that does not hold a single rank, which `spend` would refuse once all is known.

    Args:
        budget: Of any kind.
        least: Bytes of the smallest layer that there may be, with one rank.
        overhead: See `spend`.

    Raises:
        ArgumentError: The size is too small; says what would do, at least.
    """
    if budget.kind == "size" and overhead + least > budget.value:
        raise ArgumentError(_too_small(budget, overhead + least, 1, claimed=False))


def _directions(layer: LayerSpectrum) -> int:
    """How many singular values are more than rounding."""
    return int((layer.s > ROUNDING * layer.s[0]).sum()) if len(layer.s) else 0


def _bounds(budget: Budget, layer: LayerSpectrum) -> tuple[int, int]:
    """The fewest and the most ranks that a layer can get; the same where a rule decides."""
    there = _directions(layer)
    rule = budget.rule_for(layer.kernel)
    if rule is None:
        most = there if budget.most is None else min(there, budget.most)
        return min(budget.least, most), most
    if there == 0 or (rule.kind == "rank" and rule.value == 0):
        return 0, 0
    chosen = rule.choose(layer.s, float(layer.s.square().sum()) + layer.rest, len(layer.s))
    rank = there if chosen is None else min(chosen, there)
    return rank, rank


def _order(layers: Sequence[LayerSpectrum], bounds: Sequence[tuple[int, int]]) -> list[int]:
    """The order of buying: a layer's index for each rank that it can get, by gain per byte."""
    worth = [_worth(*each) for each in zip(layers, bounds, strict=True)]
    owners = torch.arange(len(worth)).repeat_interleave(torch.tensor([len(each) for each in worth]))
    return owners[torch.cat(worth).argsort(descending=True, stable=True)].tolist()


def _worth(layer: LayerSpectrum, bounds: tuple[int, int]) -> Tensor:
    """Gain per byte of each rank between the bounds, descending.

    The first rank also pays for the layer's entry, which alone could make it worse than the second.
    It is therefore judged together with as many of the next as make their common gain per byte best.
    """
    least, most = bounds
    gains = (layer.weight * layer.s[least:most]).square()
    if len(gains) == 0:
        return gains
    entry = 0 if least else layer.fixed
    together = gains.cumsum(0) / (entry + layer.cost * torch.arange(1, len(gains) + 1))
    best = int(together.argmax())
    worth = gains / layer.cost
    worth[: best + 1] = together[best]
    return worth.cummin(0).values


def _fill(
    budget: Budget,
    layers: Sequence[LayerSpectrum],
    bounds: Sequence[tuple[int, int]],
    *,
    spent: int,
    limit: int,
) -> list[int]:
    """Start from the fewest ranks and buy in order; if one does not fit, a later one may."""
    ranks = [least for least, _ in bounds]
    claimed = sum(_price(*each) for each in zip(layers, ranks, strict=True))
    single = min(
        (_price(x, 1) for x, (_, most) in zip(layers, bounds, strict=True) if most), default=0
    )
    if spent + (claimed or single) > limit:
        raise ArgumentError(
            _too_small(budget, spent + (claimed or single), len(layers), claimed > 0)
        )
    spent += claimed
    closed: set[int] = set()
    for i in _order(layers, bounds):
        if i in closed:
            continue
        price = _price(layers[i], ranks[i] + 1) - _price(layers[i], ranks[i])
        if spent + price <= limit:
            ranks[i] += 1
            spent += price
        else:
            closed.add(i)
    return ranks


def _shed(
    error: float, layers: Sequence[LayerSpectrum], bounds: Sequence[tuple[int, int]]
) -> list[int]:
    """Start from the most ranks and drop in reverse order whatever the bound still allows to go."""
    ranks = [most for _, most in bounds]
    squares = [layer.s.square().tolist() for layer in layers]
    unknown = math.fsum(layer.rest for layer in layers)
    allowed = error * error * (math.fsum(map(math.fsum, squares)) + unknown) * (1 + 1e-12)
    lost = math.fsum(math.fsum(each[rank:]) for each, rank in zip(squares, ranks, strict=True))
    lost += unknown
    closed: set[int] = set()
    for i in reversed(_order(layers, bounds)):
        if i in closed:
            continue
        loss = squares[i][ranks[i] - 1]
        if lost + loss <= allowed:
            ranks[i] -= 1
            lost += loss
        else:
            closed.add(i)
    return ranks


def _price(layer: LayerSpectrum, rank: int) -> int:
    return layer.fixed + rank * layer.cost if rank else 0


def _too_small(budget: Budget, needed: int, layers: int, claimed: bool) -> str:
    """`needed` is in the budget's coin: bytes for a size, ranks for a mean."""
    if budget.kind == "size":
        takes, least = f"{needed} bytes", str(needed)
    else:
        takes, least = (
            f"{needed} of {layers} layers' ranks",
            f"{math.ceil(1000 * needed / layers) / 1000}",
        )
    what = "what `min=` and `conv=` ask for" if claimed else "the smallest single rank"
    return f"`{budget}` is too small: {what} takes {takes}; give `{budget.kind}={least}` or more"


def _size(part: str, number: str) -> float:
    size = parse_size(number)
    if size <= 0:
        raise ArgumentError(f"`{part}`: give a size above 0")
    return size


def _between(low: float, high: float, meaning: str) -> Callable[[str, str], float]:
    def read(part: str, number: str) -> float:
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not low < value < high:
            raise ArgumentError(f"`{part}`: give {meaning}")
        return value

    return read


_VALUES: dict[str, Callable[[str, str], float]] = {
    "size": _size,
    "mean": _between(0, 65536, "ranks per layer, a number above 0"),
    "total_error": _between(0, 1, "a share between 0 and 1"),
}
