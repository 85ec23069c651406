"""Methods that combine A, B and C element by element, and those that take B's numbers in places.

A is the base, B and C are the terms, alpha and beta the weights of B and C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .work import Task, Work

#: (base, tiles, weights) to the result, which may lie in the memory of the tiles.
Formula = Callable[[Tensor, Tensor, tuple[float, ...]], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class FormulaWork(Work):
    """A formula for each element, and nothing to know before."""

    task: Task
    formula: Formula

    def combine(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """What the formula says."""
        return self.formula(with_base(base), tiles, self.task.weights)


def with_base(base: Tensor | None) -> Tensor:
    """The base of a method that needs one."""
    if base is None:
        raise TypeError("this method was begun without its base")
    return base


def train_difference(base: Tensor, tiles: Tensor, weights: tuple[float, ...]) -> Tensor:
    """A + 1.8 alpha s (B - C), s = |B - A| / (|B - C| + |B - A|): supermerger's; A where B is C."""
    b, c = tiles
    change = torch.sub(b, c, out=c)
    apart = b.sub_(base).abs_()
    share = change.abs().add_(apart)
    apart.div_(share.masked_fill_(share == 0, 1))
    return change.mul_(apart).mul_(1.8 * weights[0]).add_(base)


def multiply_difference(base: Tensor, tiles: Tensor, weights: tuple[float, ...]) -> Tensor:
    """C + |A - C|^(1 - alpha) |B - C|^alpha with the sign of (1 - beta) A + beta B - C: meh's."""
    (alpha, beta), (b, c) = weights, tiles
    sign = torch.lerp(base, b, beta).sub_(c)
    # In float64: in float32 torch's power differs by where an element stands in a tile.
    size = torch.sub(base, c).abs_().double().pow_(1 - alpha)
    size.mul_(b.sub_(c).abs_().double().pow_(alpha))
    return b.copy_(size).copysign_(sign).add_(c)


def similarity(base: Tensor, tiles: Tensor, weights: tuple[float, ...]) -> Tensor:
    """From A + alpha (B - C) to A + alpha / 2 (B - A) by how alike A and B are, times beta: meh's.

    Two numbers are alike by (A B / max(|A|, |B|)^2 + 1) / 2; two zeros wholly.
    """
    (alpha, beta), (b, c) = weights, tiles
    size = torch.maximum(base.abs(), b.abs())
    # The smaller over the larger: their squares may be too small for float32.
    alike = torch.minimum(base.abs(), b.abs()).div_(size.masked_fill(size == 0, 1))
    alike.mul_(torch.sign(base)).mul_(torch.sign(b)).add_(1).div_(2)
    alike.masked_fill_(size == 0, 1).mul_(beta)
    difference = torch.sub(b, c, out=c).mul_(alpha).add_(base)
    return difference.lerp_(torch.lerp(base, b, alpha / 2), alike)


def limit(base: Tensor, tiles: Tensor, weights: tuple[float, ...]) -> Tensor:
    """The base, each element kept in the range of the terms of which the weight is not 0."""
    bounds = [tile for tile, weight in zip(tiles, weights, strict=True) if weight]
    if not bounds:
        return base
    lowest, highest = bounds[0].clone(), bounds[0]
    for bound in bounds[1:]:
        torch.minimum(lowest, bound, out=lowest)
        torch.maximum(highest, bound, out=highest)
    return torch.minimum(torch.maximum(lowest, base, out=lowest), highest, out=lowest)


@dataclass(frozen=True, slots=True, eq=False)
class RowsWork(Work):
    """Tensor sum: some rows are B's, the others A's.

    Attributes:
        inside: First row, and the row after the last, of the part.
        inverted: Whether the part is A's.
    """

    inside: tuple[int, int]
    inverted: bool

    @staticmethod
    def begin(task: Task) -> RowsWork:
        """Rows from floor(offset n) to floor((alpha + offset) n) are B's; past the end it goes round."""
        width, offset = task.weights[0], task.number("offset")
        # A tensor of no dimension is no row to cut: the weight says which it is.
        if not task.shape:
            return RowsWork((0, int(width > 0.5)), inverted=False)
        cut = math.floor
        if task.choice("legacy") == "mecha":
            cut = round
            width, offset = min(abs(width), 1), (offset + min(width, 0)) % 1
        inverted = width + offset > 1
        ends = (width + offset - 1, offset) if inverted else (offset, width + offset)
        return RowsWork((cut(ends[0] * task.rows), cut(ends[1] * task.rows)), inverted)

    def combine(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """The rows of either."""
        a, b = with_base(base), tiles[0]
        rows = torch.arange(first_row, first_row + len(b), device=b.device)
        of_a = ((rows >= self.inside[0]) & (rows < self.inside[1])) == self.inverted
        b[of_a] = a[of_a]
        return b
