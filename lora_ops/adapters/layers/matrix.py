"""A matrix as LyCORIS stores it: whole, or as a product of two thin ones with or without a core."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import LayerShapeError


@dataclass(frozen=True, slots=True, eq=False)
class WholeMatrix:
    """One tensor.

    Attributes:
        name: What messages call it.
        whole: (out, in, *kernel).

    Raises:
        LayerShapeError: It has less than two axes.
    """

    name: str
    whole: Tensor

    def __post_init__(self) -> None:
        if self.whole.ndim < 2 or 0 in self.whole.shape:
            raise LayerShapeError(
                f"{self.name} is {self.shape}: it has two axes or more, none empty"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, *kernel)."""
        return tuple(self.whole.shape)

    @property
    def rank(self) -> int:
        """Its shorter side, the kernel on the input side."""
        return min(self.shape[0], math.prod(self.shape[1:]))

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return up (out, rank) and down (rank, in * kernel), one of them an identity."""
        return beside_identity(self.product(dtype))

    def product(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix (out, in * kernel)."""
        return self.whole.to(dtype).flatten(1)


@dataclass(frozen=True, slots=True, eq=False)
class ThinMatrix:
    """The product a @ b, or in Tucker's form a^T @ core @ b.

    Attributes:
        name: What messages call it.
        a: (out, rank); beside a core (rank, out).
        b: (rank, in * kernel); beside a core (q, in).
        core: (rank, q, *kernel), or None.

    Raises:
        LayerShapeError: They do not fit together.
    """

    name: str
    a: Tensor
    b: Tensor
    core: Tensor | None = None

    def __post_init__(self) -> None:
        first, second = tuple(self.a.shape), tuple(self.b.shape)
        told = f"{self.name}_a is {first} and {self.name}_b is {second}"
        if len(first) != 2 or len(second) < 2 or (self.core is not None and len(second) != 2):
            raise LayerShapeError(f"{told}: a factor has two axes")
        if 0 in first or 0 in second:
            raise LayerShapeError(f"{told}: an axis is empty")
        if self.core is None and first[1] != second[0]:
            raise LayerShapeError(f"{told}: their ranks, {first[1]} and {second[0]}, differ")
        ends = (first[0], second[0])
        if self.core is not None and tuple(self.core.shape[:2]) != ends:
            raise LayerShapeError(
                f"{told}: their core is {tuple(self.core.shape)}, and must begin {ends}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, *kernel); a kernel that is stored flat is in the input side."""
        if self.core is None:
            return (self.a.shape[0], *self.b.shape[1:])
        return (self.a.shape[1], self.b.shape[1], *self.core.shape[2:])

    @property
    def rank(self) -> int:
        """Inner size of the product that `factors` returns."""
        return self.a.shape[1 if self.core is None else 0]

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return up (out, rank) and down (rank, in * kernel)."""
        a, b = self.a.to(dtype), self.b.to(dtype)
        if self.core is None:
            return a, b.flatten(1)
        return a.mT.contiguous(), torch.einsum("rq...,qi->ri...", self.core.to(dtype), b).flatten(1)

    def product(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix (out, in * kernel), multiplied out."""
        up, down = self.factors(dtype)
        return up @ down


def beside_identity(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return two factors of a matrix (out, in), one of them an identity of its shorter side."""
    out, into = matrix.shape
    eye = torch.eye(min(out, into), dtype=matrix.dtype, device=matrix.device)
    return (eye, matrix) if out < into else (matrix, eye)


def kron(first: Tensor, second: Tensor) -> Tensor:
    """Return Kronecker's product of two matrices, in whatever order their numbers lie.

    PyTorch's own, since 2.13, fails on some that are not contiguous, and on columns that say another stride.
    """
    return torch.kron(*(one.reshape(-1).view(one.shape) for one in (first, second)))
