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

from ..errors import LayerShapeError
from .layer import OwnChange, beside_identity, by_role, check_pair, tucker_factors


@dataclass(frozen=True, slots=True, eq=False)
class LohaLayer(OwnChange):
    """delta = scale * (w1_a @ w1_b) * (w2_a @ w2_b), the second product element by element.

    Attributes:
        w1_a, w2_a: (out, rank); in Tucker's form (rank, out).
        w1_b, w2_b: (rank, in * kernel); in Tucker's form (rank, in).
        alpha: The stored number; None where the file has none.
        t1, t2: Tucker cores (rank, rank, *kernel), both or neither.

    Raises:
        LayerShapeError: The factors do not fit together.
    """

    title: ClassVar[str] = "LoHa"

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
        check_pair("w1", self.w1_a, self.w1_b, self.t1)
        check_pair("w2", self.w2_a, self.w2_b, self.t2)
        first = _shape(self.w1_a, self.w1_b, self.t1)
        second = _shape(self.w2_a, self.w2_b, self.t2)
        if first != second:
            raise LayerShapeError(f"w1 makes {first} and w2 makes {second}: they must be alike")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes, (out, in, *kernel), or with a flat kernel."""
        return _shape(self.w1_a, self.w1_b, self.t1)

    @property
    def factor_rank(self) -> int:
        """Inner size of the first product: what alpha is divided by."""
        return self.w1_b.shape[0]

    @property
    def rank(self) -> int:
        """The product of both inner sizes, and no more than a side of the weight."""
        return min(self._columns, self.shape[0], math.prod(self.shape[1:]))

    @property
    def scale(self) -> float:
        """Alpha / inner size, and 1 where the file stores no alpha."""
        return 1.0 if self.alpha is None else self.alpha / self.factor_rank

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the factors as stored."""
        return self.w1_b.dtype

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
        (up_1, down_1), (up_2, down_2) = self._pairs(torch.float32)
        up = (up_1[:, :, None] * up_2[:, None, :]).flatten(1)
        down = (down_1[:, None, :] * down_2[None, :, :]).flatten(0, 1)
        return up * (self.scale * strength), down

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the change, of `shape`, multiplied out in ``dtype``."""
        (up_1, down_1), (up_2, down_2) = self._pairs(dtype)
        product = (up_1 @ down_1).mul_(up_2 @ down_2)
        return product.mul_(self.scale).reshape(self.shape)

    @property
    def _columns(self) -> int:
        axis = 1 if self.t1 is None else 0
        return self.w1_a.shape[axis] * self.w2_a.shape[axis]

    def _pairs(self, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        first, second = (
            tucker_factors(a.to(dtype), b.to(dtype), None if t is None else t.to(dtype))
            for a, b, t in ((self.w1_a, self.w1_b, self.t1), (self.w2_a, self.w2_b, self.t2))
        )
        return first, second


def _shape(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, ...]:
    if core is None:
        return (a.shape[0], *b.shape[1:])
    return (a.shape[1], b.shape[1], *core.shape[2:])
