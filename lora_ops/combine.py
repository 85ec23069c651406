"""A linear combination of the changes of one weight, as one layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from .devices import Placement, upload
from .dtypes import loadable, rounded
from .layers import FullLayer, Layer, LoraLayer, low_rank
from .linalg import distance, factored_svd, inner, thinned
from .ranks import RankRule

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Combination:
    """Layers that change one weight, and what each is multiplied by.

    Attributes:
        target: The weight, for messages.
        shape: Of the weight, (out, in, *kernel).
        layers: One or more, none of them zero.
        coefficients: One a layer, not 0.
        factors: Of each layer, float32, where to compute.
    """

    target: str
    shape: tuple[int, ...]
    layers: Sequence[Layer]
    coefficients: Sequence[float]
    factors: Sequence[Factors]

    @property
    def rank(self) -> int:
        """Of all layers together."""
        return sum(len(down) for _, down in self.factors)

    @property
    def dtype(self) -> torch.dtype:
        """What holds all that the layers hold, of the dtypes that loaders read."""
        return reduce(torch.promote_types, (loadable(layer.dtype) for layer in self.layers))

    def product(self) -> Factors:
        """The whole combination as one pair of factors, float32."""
        pairs = zip(self.factors, self.coefficients, strict=True)
        up = torch.cat([up * coefficient for (up, _), coefficient in pairs], dim=1)
        return up, torch.cat([down for _, down in self.factors])

    def missed(self, result: Layer) -> float:
        """Frobenius norm of the combination less the layer that is written for it."""
        up, down = self.product()
        other_up, other_down = (factor.to(up.device) for factor in factors_of(result))
        if other_down.shape == down.shape and torch.equal(other_down, down):
            lost = up - other_up
            return float(inner(lost, down, lost, down).clamp(min=0).sqrt())
        return float(distance(up, down, other_up, other_down))


def factors_of(layer: Layer, placement: Placement | None = None) -> Factors:
    """Return up (out, r) and down (r, in * kernel), float32, whose product is the layer's change.

    A full difference is its own factor beside an identity.
    """
    if isinstance(layer, LoraLayer):
        up, down = layer.factors()
    else:
        flat = layer.diff.float().reshape(len(layer.diff) if layer.diff.ndim else 1, -1)
        out, width = flat.shape
        eye = torch.eye(min(out, width))
        up, down = (eye, flat) if out < width else (flat, eye)
    return (up, down) if placement is None else (upload(up, placement), upload(down, placement))


def gram_of(factors: Sequence[Factors]) -> Tensor:
    """Return the (T, T) inner products of changes given by their factors; float64, on the CPU."""
    count = len(factors)
    gram = torch.zeros((count, count), dtype=torch.float64)
    for i in range(count):
        for j in range(i, count):
            gram[i, j] = gram[j, i] = inner(*factors[i], *factors[j])
    return gram


def concatenated(
    sum_: Combination, dtype: torch.dtype | None = None, *, has_alpha: bool = True
) -> LoraLayer | None:
    """Return the exact sum, its rank that of all layers together; None where that is too much.

    Strengths are in up; every down keeps its bits. So does the strongest up where the file has an
    alpha to hold its strength: the others shrink, and none grows out of a 16-bit range.

    Args:
        sum_: What to add.
        dtype: Of the factors; None: what holds all that the layers hold.
        has_alpha: Whether the file has a place for alpha.
    """
    thin = [layer for layer in sum_.layers if isinstance(layer, LoraLayer)]
    rank = sum_.rank
    if len(thin) < len(sum_.layers) or rank > min(sum_.shape[0], math.prod(sum_.shape[1:])):
        return None
    gains = [c * layer.scale for c, layer in zip(sum_.coefficients, thin, strict=True)]
    scale = max(map(abs, gains)) if has_alpha else 1.0
    bare = [replace(layer, alpha=None).factors() for layer in thin]
    shares = [up * (gain / scale) for (up, _), gain in zip(bare, gains, strict=True)]
    up = rounded(torch.cat(shares, dim=1), dtype or sum_.dtype, sum_.target)
    down = rounded(torch.cat([down for _, down in bare]), dtype or sum_.dtype, sum_.target)
    return low_rank(up, down, sum_.shape, alpha=rank * scale if has_alpha else None)


def recompressed(
    sum_: Combination,
    rule: RankRule | None,
    dtype: torch.dtype | None = None,
    *,
    has_alpha: bool = True,
) -> LoraLayer | None:
    """Return the best approximation of the sum at the rank of a rule; None where that is 0.

    Args:
        sum_: What to add.
        rule: How many directions; None: all that there are.
        dtype: Of the factors; None: what holds all that the layers hold.
        has_alpha: Whether the file has a place for alpha, which is then the rank.
    """
    svd = factored_svd(*thinned(*sum_.product()))
    rank: int | None = len(svd.s)
    if rule is not None:
        own = rule.for_kernel(sum_.shape[2:])
        if (own.kind, own.value) == ("rank", 0):
            return None
        rank = own.choose(svd.s, float(svd.s.square().sum()), len(svd.s))
    # Directions at rounding level are zero in `s`: no rank is spent on them.
    held = max(1, min(rank or 1, int((svd.s > 0).sum())))
    up, down = (rounded(f, dtype or sum_.dtype, sum_.target) for f in svd.factors(held))
    return low_rank(up, down, sum_.shape, alpha=float(held) if has_alpha else None)


def summed(sum_: Combination, dtype: torch.dtype | None = None) -> FullLayer | None:
    """Return the sum of full differences; None where a layer is none."""
    whole = [layer for layer in sum_.layers if isinstance(layer, FullLayer)]
    if len(whole) < len(sum_.layers):
        return None
    total = torch.zeros(sum_.shape, dtype=torch.float64)
    for layer, coefficient in zip(whole, sum_.coefficients, strict=True):
        total += layer.diff.double().reshape(sum_.shape) * coefficient
    return FullLayer(rounded(total, dtype or sum_.dtype, sum_.target))
