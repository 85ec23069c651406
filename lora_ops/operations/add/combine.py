"""A linear combination of the changes of one weight, as one layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...adapters.layers import FullLayer, Layer, LoraLayer, low_rank
from ...elements import loadable_by_all
from ...linalg import factored_svd, frobenius, gram_matrix, inner, thinned
from ...linalg.ranks.rules import RankRule
from ...linalg.ranks.truncation import truncated
from ...linalg.storage import loadable, rounded
from ...run.devices import Placement, download, upload
from ..methods.factored.frame import Frame, framed
from .apart import Apart, apart, is_bulky

Factors = tuple[Tensor, Tensor]
# A rank above that of any weight: all directions are kept.
_ALL = RankRule("rank", 1 << 16)


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The factors of several changes of one weight, side by side.

    Attributes:
        up: (out, R), as the layers store it; float32 where they do so in several ways.
        down: (R, in * kernel), of the same dtype.
        sizes: How many of the R columns each change has, in order.
        scales: Factor on the columns of up of each change.
        left: (R, R), float32 or float64: inner products of the columns of up, without scales.
        right: (R, R), of the same dtype: inner products of the rows of down.
    """

    up: Tensor
    down: Tensor
    sizes: tuple[int, ...]
    scales: tuple[float, ...]
    left: Tensor
    right: Tensor

    def columns(self, numbers: Sequence[float]) -> Tensor:
        """Return a number for each change as one for each of its columns, times the change's scale.

        (R,), float64, on the CPU.
        """
        scaled = [number * scale for number, scale in zip(numbers, self.scales, strict=True)]
        return torch.tensor(scaled, dtype=torch.float64).repeat_interleave(torch.tensor(self.sizes))

    def gram(self) -> Tensor:
        """Return the (T, T) inner products of the T changes; float64, on the CPU."""
        rows = (self.left * self.right).cpu().double().split(self.sizes)
        blocks = [block.sum() for row in rows for block in row.split(self.sizes, dim=1)]
        scales = torch.tensor(self.scales, dtype=torch.float64)
        return torch.stack(blocks).reshape(len(rows), len(rows)) * scales.outer(scales)

    def square(self, coefficients: Sequence[float]) -> Tensor:
        """Return the squared Frobenius norm of the sum of coefficients times changes, float64."""
        factors = torch.tensor(coefficients, dtype=torch.float64)
        return (factors @ self.exact().gram() @ factors).clamp(min=0)

    def frame(self) -> Frame:
        """Return the changes as small matrices in common directions."""
        known = self.exact()
        products = (known.left, known.right)
        return framed(self.up, self.down, self.sizes, self.scales, products)

    def tiles(self, part: slice) -> Tensor:
        """Return rows of each change multiplied out: (T, rows, in * kernel), float32."""
        ups = self.up[part].float().split(self.sizes, dim=1)
        downs = self.down.float().split(self.sizes)
        tiles = [scale * up @ down for scale, up, down in zip(self.scales, ups, downs, strict=True)]
        return torch.stack(tiles)

    def exact(self) -> Stack:
        """The same with inner products in float64, for where changes cancel or are decomposed."""
        if self.left.dtype == torch.float64:
            return self
        return replace(
            self, left=gram_matrix(self.up.mT, self.up.mT), right=gram_matrix(self.down, self.down)
        )


def stacked(layers: Sequence[Layer], placement: Placement | None = None) -> Stack | Apart:
    """Return layers' factors side by side with their inner products, which all else is made of.

    In float32, which costs a quarter; see `Stack.exact`. Where factors of one would be larger than
    the weight, they stay apart.

    Args:
        layers: One or more.
        placement: Where to compute; None: where they are.
    """
    if any(map(is_bulky, layers)):
        return apart(layers, placement)
    plain = _plain(layers)
    if plain is None:
        factors = [layer.factors() for layer in layers]
        scales = (1.0,) * len(layers)
    else:
        factors = [(layer.up.flatten(1), layer.down.flatten(1)) for layer in plain]
        scales = tuple(layer.scale for layer in plain)
    ups, downs = zip(*factors, strict=True)
    up, down = torch.cat(ups, dim=1), torch.cat(downs)
    if placement is not None:
        up, down = upload(up, placement), upload(down, placement)
    sizes = tuple(len(one) for one in downs)
    return Stack(up, down, sizes, scales, _products(up.mT), _products(down))


@dataclass(frozen=True, slots=True, eq=False)
class Combination:
    """Layers that change one weight, and what each is multiplied by.

    Attributes:
        target: The weight, for messages.
        shape: Of the weight, (out, in, *kernel).
        layers: One or more, none of them zero.
        coefficients: One for each layer, none of them 0.
        stack: The factors of the layers.
    """

    target: str
    shape: tuple[int, ...]
    layers: Sequence[Layer]
    coefficients: Sequence[float]
    stack: Stack | Apart

    @property
    def rank(self) -> int:
        """Rank of all layers together."""
        return sum(self.stack.sizes)

    @property
    def dtype(self) -> torch.dtype:
        """A dtype that loaders read, and that holds the numbers of all layers."""
        return loadable_by_all(layer.element for layer in self.layers).dtype

    def product(self, stack: Stack) -> Factors:
        """The whole combination as one pair of factors, float32, from those of its layers."""
        up, down = stack.up.float(), stack.down.float()
        return up * stack.columns(self.coefficients).to(up), down

    def missed(self, result: Layer) -> float:
        """Frobenius norm of the combination less the layer that is written for it."""
        stack = self.stack
        if isinstance(stack, Apart):
            return stack.missed(self.coefficients, result)
        up, down = (factor.to(stack.up.device) for factor in result.factors())
        if down.shape == stack.down.shape and torch.equal(down, stack.down.float()):
            lost = self.product(stack)[0] - up
            products = _products(lost.mT) * stack.right.to(lost)
            return float(products.sum().clamp(min=0).sqrt())
        stack = stack.exact()
        columns = stack.columns(self.coefficients)
        crossed = (gram_matrix(stack.up.mT, up.mT) * gram_matrix(stack.down, down)).sum(1)
        found = (stack.left * stack.right, crossed, inner(up, down, up, down))
        own, crossed, other = download(found)  # at once: a device is waited for at each copy
        square, both = columns @ own @ columns, columns @ crossed
        return float((square - 2 * both + other).clamp(min=0).sqrt())


def side_by_side(
    sum_: Combination, dtype: torch.dtype | None = None, *, has_alpha: bool = True
) -> LoraLayer | None:
    """Return the exact sum made of the stored numbers alone; None where one would be rounded.

    That is where all layers have one scale and one dtype.

    Args:
        sum_: The layers, and what each is multiplied by.
        dtype: Dtype of the factors; None: one that holds the numbers of all layers.
        has_alpha: Whether the file has a place for alpha.
    """
    gains = [c * layer.scale for c, layer in zip(sum_.coefficients, sum_.layers, strict=True)]
    stack = sum_.stack
    if min(gains) != max(gains) or gains[0] <= 0 or not _has_space(sum_):
        return None
    if not (has_alpha or gains[0] == 1):
        return None
    if isinstance(stack, Apart):
        return None
    if _plain(sum_.layers) is None or stack.up.dtype != (dtype or sum_.dtype):
        return None
    up, down = download([stack.up, stack.down])
    return low_rank(up, down, sum_.shape, alpha=sum_.rank * gains[0] if has_alpha else None)


def concatenated(
    sum_: Combination, dtype: torch.dtype | None = None, *, has_alpha: bool = True
) -> LoraLayer | None:
    """Return the exact sum, its rank that of all layers together; None where that is too much.

    It is too much for a full difference, which has no factors worth storing.

    Strengths are in up; every down keeps its bits. So does the strongest up where the file has an
    alpha to hold its strength: the others shrink, and none grows out of a 16-bit range.

    Args:
        sum_: The layers, and what each is multiplied by.
        dtype: Dtype of the factors; None: one that holds the numbers of all layers.
        has_alpha: Whether the file has a place for alpha.
    """
    stack = sum_.stack
    if not _has_space(sum_) or any(one.is_full for one in sum_.layers):
        return None
    if isinstance(stack, Apart):
        return None
    own, down = download([stack.up, stack.down])
    stacked_ups = own.split(stack.sizes, dim=1)
    known = [_up(*pair) for pair in zip(sum_.layers, stacked_ups, strict=True)]
    gains = [c * gain for c, (_, gain) in zip(sum_.coefficients, known, strict=True)]
    scale = max(map(abs, gains)) if has_alpha else 1.0
    ups = [up.float() * (gain / scale) for (up, _), gain in zip(known, gains, strict=True)]
    up = rounded(torch.cat(ups, dim=1), dtype or sum_.dtype, sum_.target)
    down = rounded(down, dtype or sum_.dtype, sum_.target)
    return low_rank(up, down, sum_.shape, alpha=sum_.rank * scale if has_alpha else None)


def recompressed(
    sum_: Combination,
    rule: RankRule | None,
    dtype: torch.dtype | None = None,
    *,
    has_alpha: bool = True,
) -> LoraLayer | None:
    """Return the best approximation of the sum at the rank of a rule; None where that is 0.

    From factors it is exact; of layers that stay apart within 1e-3 of the least error.

    Args:
        sum_: The layers, and what each is multiplied by.
        rule: How many directions to keep; None: all.
        dtype: Dtype of the factors; None: one that holds the numbers of all layers.
        has_alpha: Whether the file has a place for alpha, which is then the rank.
    """
    stack = sum_.stack
    if isinstance(stack, Apart):
        own = (rule or _ALL).for_kernel(sum_.shape[2:])
        if own.leaves_out:
            return None
        whole = stack.sum(sum_.coefficients)
        dense = isinstance(whole, Tensor)
        total = frobenius(whole).square() if dense else stack.square(sum_.coefficients)[None]
        (near,) = truncated(whole, total, own, exact=rule is None)
        return written(sum_, near.factors(), dtype, has_alpha=has_alpha)
    svd = factored_svd(*thinned(*sum_.product(stack)))
    s = svd.s.cpu()
    rank: int | None = len(s)
    if rule is not None:
        own = rule.for_kernel(sum_.shape[2:])
        if own.leaves_out:
            return None
        rank = own.choose(s, float(s.square().sum()), len(s))
    # Directions at rounding level are zero in `s`: no rank is spent on them.
    held = max(1, min(rank or 1, int((s > 0).sum())))
    return written(sum_, svd.factors(held), dtype, has_alpha=has_alpha)


def written(
    sum_: Combination, factors: Factors, dtype: torch.dtype | None, *, has_alpha: bool
) -> LoraLayer:
    """Return the layer with these factors, its alpha the rank.

    Args:
        sum_: Of what.
        factors: up (out, rank) and down (rank, in * kernel), float32.
        dtype: Of the factors; None: one that holds the numbers of all layers.
        has_alpha: Whether the file has a place for alpha.
    """
    dtype = dtype or sum_.dtype
    stored = download([factor.to(dtype) for factor in factors])
    up, down = (
        rounded(one, dtype, sum_.target, exact) for one, exact in zip(stored, factors, strict=True)
    )
    return low_rank(up, down, sum_.shape, alpha=float(len(down)) if has_alpha else None)


def _plain(layers: Sequence[Layer]) -> list[LoraLayer] | None:
    """The layers if all are two factors of one dtype that loaders read: they are joined as stored."""
    plain = [layer for layer in layers if isinstance(layer, LoraLayer) and layer.is_pair]
    dtypes = {factor.dtype for layer in plain for factor in (layer.up, layer.down)}
    is_one = len(dtypes) == 1 and dtypes == set(map(loadable, dtypes))
    return plain if is_one and len(plain) == len(layers) else None


def _products(rows: Tensor) -> Tensor:
    """Inner products of rows, summed in float32."""
    rows = rows.float()
    return rows @ rows.mT


def _up(layer: Layer, stacked: Tensor) -> tuple[Tensor, float]:
    """The up of a layer and what it is multiplied by.

    A LoRA gives its stored up, not that of the stack, so that its bits are kept where the factor is
    1. Other kinds have only the one of the stack.
    """
    return (layer.up.flatten(1), layer.scale) if isinstance(layer, LoraLayer) else (stacked, 1.0)


def _has_space(sum_: Combination) -> bool:
    """Whether all columns together are no more than the smaller side of the weight."""
    return sum_.rank <= min(sum_.shape[0], math.prod(sum_.shape[1:]))


def summed(sum_: Combination, dtype: torch.dtype | None = None) -> FullLayer | None:
    """Return the sum of full differences; None where a layer is of another kind."""
    whole = [layer for layer in sum_.layers if isinstance(layer, FullLayer)]
    if len(whole) < len(sum_.layers):
        return None
    total = torch.zeros(sum_.shape, dtype=torch.float64)
    for layer, coefficient in zip(whole, sum_.coefficients, strict=True):
        total += layer.diff.double().reshape(sum_.shape) * coefficient
    return FullLayer(rounded(total, dtype or sum_.dtype, sum_.target))
