"""A sum of matrices that is only multiplied with: as large as its parts, whatever its sides are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .factored import gram_matrix, inner
from .kron import Kron

#: A matrix (out, in): a Kronecker product, two factors (out, r) and (r, in), or all its numbers.
Part: TypeAlias = Kron | tuple[Tensor, Tensor] | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """The sum of parts times coefficients, as a stack of one matrix: what `krylov_svd` asks for.

    Attributes:
        parts: All of one shape, float32.
        coefficients: One for each part.
        shape: (1, out, in).
    """

    parts: tuple[Part, ...]
    coefficients: tuple[float, ...]
    shape: tuple[int, int, int]

    @property
    def mT(self) -> Operator:  # noqa: N802  as PyTorch calls it
        """The transposed sum."""
        _, out, into = self.shape
        return Operator(tuple(map(_transposed, self.parts)), self.coefficients, (1, into, out))

    def __rmatmul__(self, rows: Tensor) -> Tensor:
        """Return `rows @ self`, (..., in), for rows (..., out)."""
        found = [
            times(rows, part) * c for part, c in zip(self.parts, self.coefficients, strict=True)
        ]
        return torch.stack(found).sum(0) if len(found) > 1 else found[0]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Tensor:
        """The sum multiplied out: (out, in), float32."""
        return self.dense()[index]

    def dense(self) -> Tensor:
        """Return the sum multiplied out, (1, out, in), float32."""
        total = torch.zeros(self.shape)
        for part, coefficient in zip(self.parts, self.coefficients, strict=True):
            total[0].add_(_dense(part), alpha=coefficient)
        return total

    def new_empty(self, size: Sequence[int] | int) -> Tensor:
        """Return uninitialised memory of this dtype, on this device."""
        return torch.empty(size)


def times(rows: Tensor, part: Part) -> Tensor:
    """Return rows (..., out) times a part: (..., in)."""
    if isinstance(part, Kron):
        return part.times(rows)
    if isinstance(part, Tensor):
        return rows @ part
    return (rows @ part[0]) @ part[1]


def part_inner(one: Part, other: Part) -> float:
    """Return the Frobenius inner product of two parts, summed in float64."""
    if isinstance(one, Kron):
        if isinstance(other, Kron):
            return one.inner(other)
        return one.inner_dense(other) if isinstance(other, Tensor) else one.inner_product(*other)
    if isinstance(other, Kron):
        return part_inner(other, one)
    if isinstance(one, Tensor):
        if isinstance(other, Tensor):
            return float((one.double() * other.double()).sum())
        up, down = other
        return float((gram_matrix(up.mT, one.mT) * down.double()).sum())
    return part_inner(other, one) if isinstance(other, Tensor) else float(inner(*one, *other))


def _transposed(part: Part) -> Part:
    return (part[1].mT, part[0].mT) if isinstance(part, tuple) else part.mT


def _dense(part: Part) -> Tensor:
    if isinstance(part, Kron):
        return part.rows(slice(None))
    return part if isinstance(part, Tensor) else part[0] @ part[1]
