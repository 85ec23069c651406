"""LoKr: the Kronecker product of a small matrix and a larger one, each whole or in factors.

Edalati et al. (2022), arXiv:2212.10650; storage, Tucker's form and the law of alpha as in LyCORIS
(Yeh et al., 2023, arXiv:2309.14859) and ComfyUI.
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
class LokrLayer(OwnChange):
    """delta = scale * kron(w1, w2), where w1 is (a, b), w2 (c, d, *kernel), the change (ac, bd, *kernel).

    Attributes:
        w1: (a, b), or None where it is the product of w1_a and w1_b.
        w1_a, w1_b: (a, rank) and (rank, b), or None.
        w2: (c, d, *kernel), or None where it is made of w2_a and w2_b.
        w2_a, w2_b: (c, rank) and (rank, d * kernel), or None; in Tucker's form (rank, c) and
            (rank, d).
        t2: Tucker core (rank, rank, *kernel), or None.
        alpha: The stored number; None where the file has none. Without meaning where both matrices
            are whole.

    Raises:
        LayerShapeError: A matrix is missing or given twice, or its factors do not fit together.
    """

    title: ClassVar[str] = "LoKr"

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        _check("w1", self.w1, self.w1_a, self.w1_b, None)
        _check("w2", self.w2, self.w2_a, self.w2_b, self.t2)
        if self.w1 is not None and self.w1.ndim != 2:
            raise LayerShapeError(f"w1 is {tuple(self.w1.shape)}: it has two axes")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes, (out, in, *kernel), or with a flat kernel."""
        (a, b, *_), (c, d, *kernel) = self._shapes
        return (a * c, b * d, *kernel)

    @property
    def factor_rank(self) -> int | None:
        """Inner size of the factors of w2, else of w1: what alpha is divided by; None without any."""
        low = self.w2_b if self.w2_b is not None else self.w1_b
        return None if low is None else low.shape[0]

    @property
    def rank(self) -> int:
        """The product of both matrices' ranks, and no more than a side of the weight."""
        return min(self._columns, self.shape[0], math.prod(self.shape[1:]))

    @property
    def scale(self) -> float:
        """Alpha / inner size, and 1 where there is no alpha, or nothing but whole matrices."""
        rank = self.factor_rank
        return 1.0 if self.alpha is None or rank is None else self.alpha / rank

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the larger matrix as stored."""
        known = (self.w2, self.w2_b, self.w1, self.w1_b)
        return next(one.dtype for one in known if one is not None)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role, as a file holds them; alpha as a float32 scalar."""
        return by_role(
            self.alpha,
            w1=self.w1,
            w1_a=self.w1_a,
            w1_b=self.w1_b,
            w2=self.w2,
            w2_a=self.w2_a,
            w2_b=self.w2_b,
            t2=self.t2,
        )

    def factors(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return up (out, rank) and down (rank, in * kernel), float32, whose product is the change.

        kron(AB, CD) is kron(A, C) kron(B, D). A whole matrix stands beside an identity.
        """
        if self._columns > self.rank:
            return beside_identity(self.delta().flatten(1) * strength)
        (up_1, down_1), (up_2, down_2) = self._pairs(torch.float32)
        up = torch.kron(up_1.contiguous(), up_2.contiguous())
        return up * (self.scale * strength), torch.kron(down_1, down_2)

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the change, of `shape`, multiplied out in ``dtype``."""
        first, second = (up @ down for up, down in self._pairs(dtype))
        # The kernel is on the input side of the second, so its taps stay together.
        return torch.kron(first, second).mul_(self.scale).reshape(self.shape)

    @property
    def _columns(self) -> int:
        (a, b, *_), (c, *rest) = self._shapes
        first = min(a, b) if self.w1_a is None else self.w1_a.shape[1]
        if self.w2_a is None:
            return first * min(c, math.prod(rest))
        return first * self.w2_a.shape[1 if self.t2 is None else 0]

    @property
    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return _shape(self.w1, self.w1_a, self.w1_b, None), _shape(
            self.w2, self.w2_a, self.w2_b, self.t2
        )

    def _pairs(self, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return _pair(self.w1, self.w1_a, self.w1_b, None, dtype), _pair(
            self.w2, self.w2_a, self.w2_b, self.t2, dtype
        )


def _check(
    name: str, whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None
) -> None:
    if whole is not None:
        beside = {f"{name}_a": a, f"{name}_b": b, "t2": core}
        extra = [role for role, tensor in beside.items() if tensor is not None]
        if extra:
            raise LayerShapeError(f"{name} is there whole, and {' and '.join(extra)} beside it")
        if whole.ndim < 2 or 0 in whole.shape:
            raise LayerShapeError(f"{name} is {tuple(whole.shape)}: it has two axes, none empty")
    elif a is None or b is None:
        raise LayerShapeError(
            f"{name} is incomplete: it is one tensor, or both of {name}_a and {name}_b"
        )
    else:
        check_pair(name, a, b, core)


def _shape(
    whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None
) -> tuple[int, ...]:
    if whole is not None:
        return tuple(whole.shape)
    assert a is not None
    assert b is not None
    if core is None:
        return (a.shape[0], *b.shape[1:])
    return (a.shape[1], b.shape[1], *core.shape[2:])


def _pair(
    whole: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    core: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    if whole is not None:
        return beside_identity(whole.to(dtype).flatten(1))
    assert a is not None
    assert b is not None
    return tucker_factors(a.to(dtype), b.to(dtype), None if core is None else core.to(dtype))
