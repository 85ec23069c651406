"""NuSLERP: along the arc between two weights or changes, one arc for each tensor, row or column."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .work import Task, Work

#: Sine of an angle, up to which two directions are one, or opposite, and the way between is straight.
_COLINEAR = 1e-8
_SUMMED = {"tensor": (1, 2), "row": (2,), "column": (1,)}


@dataclass(frozen=True, slots=True, eq=False)
class ArcWork(Work):
    """mergekit's: (sin((1 - t) angle) A + sin(t angle) B) / sin(angle), t the second's share of the weights.

    Attributes:
        task: The weight.
        products: Inner products of both, for a tensor or by column, once they are known.
    """

    task: Task
    products: Tensor | None = None

    @property
    def passes(self) -> int:
        """One for the products; a tile has all of its rows."""
        return int(self.products is None and self.task.choice("axis") != "row")

    def observe(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """Products (3, 1 or rows or columns) of the first with itself, the second, and both."""
        pairs = torch.stack([tiles[0].square(), tiles[1].square(), tiles[0] * tiles[1]])
        axes = _SUMMED[self.task.choice("axis")]
        return pairs.sum(axes, dtype=torch.float64).view(3, -1).cpu()

    def settle(self, total: Tensor) -> ArcWork:
        """Take the products."""
        return replace(self, products=total)

    def combine(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """One tile, in the memory of the first."""
        by_row = self.task.choice("axis") == "row"
        products = self.products
        if products is None:
            products = self.observe(tiles, base, first_row)
        total = sum(self.task.weights)
        t = 0.5 if abs(total) < 1e-6 else self.task.weights[1] / total
        first, second = _shares(products, t).to(tiles)
        if by_row:
            first, second = first[:, None], second[:, None]
        return tiles[0].mul_(first).add_(tiles[1].mul_(second))


def _shares(products: Tensor, t: float) -> Tensor:
    """Coefficients (2, n) of both at t on the arc, from their inner products (3, n)."""
    sizes = products[:2].clamp(min=0).sqrt().prod(0)
    cosine = (products[2] / torch.where(sizes > 0, sizes, 1)).clamp(-1, 1)
    angle = cosine.acos()
    straight = (angle.sin() <= _COLINEAR) | (sizes == 0)
    line = torch.tensor([[1 - t], [t]], dtype=products.dtype)
    arc = (line * angle).sin() / torch.where(straight, 1, angle.sin())
    return torch.where(straight, line, arc)
