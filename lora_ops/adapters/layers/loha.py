"""LoHa: the element-wise product of two low-rank matrices.

Hyeon-Woo et al. (2021), arXiv:2108.06098; storage and Tucker's form as in LyCORIS (Yeh et al., 2023,
arXiv:2309.14859).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...elements import Element, element_in
from ...errors import LayerShapeError
from .families import OwnChange, Scaled
from .layer import by_role
from .matrix import ThinMatrix, beside_identity


@dataclass(frozen=True, slots=True, eq=False)
class LohaLayer(Scaled, OwnChange):
    """delta = scale * (w1_a @ w1_b) * (w2_a @ w2_b), the second product element by element.

    Attributes:
        w1_a, w2_a: (out, rank); in Tucker's form (rank, out).
        w1_b, w2_b: (rank, in * kernel); in Tucker's form (rank, in).
        alpha: The stored number; None where the file has none.
        t1, t2: Tucker cores (rank, rank, *kernel), both or neither.

    Raises:
        LayerShapeError: The factors do not fit together.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float | None = None
    t1: Tensor | None = None
    t2: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.t1 is None) != (self.t2 is None):
            there = "t1" if self.t2 is None else "t2"
            raise LayerShapeError(f"there is {there} alone, of two cores: the file is incomplete")
        first, second = (one.shape for one in self._products)
        if first != second:
            raise LayerShapeError(f"w1 makes {first} and w2 makes {second}: they must be alike")

    is_compact: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """LoHa."""
        return "LoHa"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes, (out, in, *kernel), or with a flat kernel."""
        return self._products[0].shape

    @property
    def factor_rank(self) -> int:
        """Inner size of the first product: what alpha is divided by."""
        return self.w1_b.shape[0]

    @property
    def rank(self) -> int:
        """The product of both inner sizes, and no more than a side of the weight."""
        return min(self._columns, self.shape[0], math.prod(self.shape[1:]))

    @property
    def element(self) -> Element:
        """What the numbers of the factors are, as stored."""
        return element_in(self.w1_b)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role, as a file holds them; alpha as a float32 scalar."""
        return by_role(
            self.alpha,
            w1_a=self.w1_a,
            w1_b=self.w1_b,
            w2_a=self.w2_a,
            w2_b=self.w2_b,
            t1=self.t1,
            t2=self.t2,
        )

    def factors(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return up (out, rank) and down (rank, in * kernel), float32, whose product is the change.

        Each column of up is a column of the one times a column of the other, each row of down a row
        times a row: the row-wise Kronecker product (Khatri and Rao, 1968).
        """
        if self._columns > self.rank:
            return beside_identity(self.delta().flatten(1) * strength)
        (up_1, down_1), (up_2, down_2) = (one.factors(torch.float32) for one in self._products)
        up = (up_1[:, :, None] * up_2[:, None, :]).flatten(1)
        down = (down_1[:, None, :] * down_2[None, :, :]).flatten(0, 1)
        return up * (self.scale * strength), down

    def delta(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the change, of `shape`, multiplied out in ``dtype``."""
        dtype = dtype or torch.float32
        first, second = (one.product(dtype) for one in self._products)
        return (first * second).mul_(self.scale).reshape(self.shape)

    @property
    def _columns(self) -> int:
        first, second = self._products
        return first.rank * second.rank

    @property
    def _products(self) -> tuple[ThinMatrix, ThinMatrix]:
        return (
            ThinMatrix("w1", self.w1_a, self.w1_b, self.t1),
            ThinMatrix("w2", self.w2_a, self.w2_b, self.t2),
        )
