"""Cosine A and B: how much of A stays in a column depends on how alike A and B are there.

supermerger's, where the likeness is put in the range that it has over the whole model; so all weights
are surveyed first. mecha's is the likeness itself, and for A without that of the whole tensor: values of
the one mean nothing in the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .differences import with_base
from .work import Task, Work


@dataclass(frozen=True, slots=True, eq=False)
class CosineWork(Work):
    """One weight.

    Attributes:
        task: The weight, alpha the weight of B.
        kind: Whether `a` or `b` is favoured.
        products: (3, columns) of A with itself, B with itself and both, once they are known.
    """

    task: Task
    kind: str
    products: Tensor | None = None

    @property
    def passes(self) -> int:
        """One for the products."""
        return int(self.products is None)

    def observe(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """Products of columns, float64."""
        a, b = with_base(base), tiles[0]
        pairs = ((a, a), (b, b), (a, b))
        return torch.stack([(x * y).sum(0, dtype=torch.float64) for x, y in pairs]).cpu()

    def settle(self, total: Tensor) -> CosineWork:
        """Take the products."""
        return replace(self, products=total)

    def values(self) -> Tensor:
        """Likenesses of the columns; for A without the whole tensor's, as supermerger surveys them."""
        columns, whole = self._cosines()
        return columns if self.kind == "a" else (columns + whole) / 2

    def combine(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """From B to A by likeness less alpha."""
        columns, whole = self._cosines()
        alpha = self.task.weights[0]
        if self.task.choice("legacy") == "mecha":
            alike = columns if self.kind == "a" else (columns + whole) / 2
        else:
            if self.task.survey is None:
                raise TypeError("cosine methods need the survey of the whole model")
            low, high = self.task.survey.tolist()
            alike = ((columns + whole) / 2 - low) / (high - low if high > low else 1)
            alpha = abs(alpha) if self.kind == "a" else alpha
        share = (alike - alpha).clamp(0, 1).to(tiles)
        return tiles[0].lerp_(with_base(base), share.expand_as(tiles[0]))

    def _cosines(self) -> tuple[Tensor, Tensor]:
        """Of each column, and of the whole; kind `a` makes all columns equally long before."""
        if self.products is None:
            raise TypeError("the pass for products is still to come")
        lengths, products = self.products[:2].sqrt(), self.products[2]
        columns = _ratio(products, lengths.prod(0))
        if self.kind == "a":
            return columns, _ratio(columns.sum(), (lengths > 0).sum(1).double().sqrt().prod())
        return columns, _ratio(products.sum(), self.products[:2].sum(1).sqrt().prod())


def survey(values: Tensor) -> Tensor:
    """The range (2,) of likenesses over the whole model, without a hundredth at either end."""
    kept = values[values.isfinite()].numpy()
    if not len(kept):
        return torch.tensor([0.0, 1.0], dtype=torch.float64)
    kept = kept[kept >= np.percentile(kept, 1, method="midpoint")]
    kept = kept[kept <= np.percentile(kept, 99, method="midpoint")]
    return torch.tensor([kept.min(), kept.max()], dtype=torch.float64)


def _ratio(upper: Tensor, lower: Tensor) -> Tensor:
    return upper / torch.where(lower > 0, lower, 1)
