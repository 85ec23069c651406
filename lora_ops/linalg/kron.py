"""Kronecker's product of two small matrices: products, norms and SVD of it, never multiplied out.

kron(A, B) of A (a, b) and B (c, n) is (a c, b n). Its singular values are the products of theirs, and
its vectors the Kronecker products of theirs (Van Loan, 2000, The ubiquitous Kronecker product).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .factored import FactoredSvd, factored_svd, inner

# Elements of the rows that are multiplied out at a time where two products have no shapes in common.
_TILE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Kron:
    """scale * kron(first, second).

    Attributes:
        first: (a, b), float32 or float64.
        second: (c, n), of the same dtype.
        scale: A finite factor.
    """

    first: Tensor
    second: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(a c, b n)."""
        (a, b), (c, n) = self.first.shape, self.second.shape
        return a * c, b * n

    @property
    def mT(self) -> Kron:  # noqa: N802  as PyTorch calls it
        """The transposed matrix."""
        return Kron(self.first.mT, self.second.mT, self.scale)

    def norm(self) -> Tensor:
        """Return the Frobenius norm, float64."""
        return self.first.double().norm() * self.second.double().norm() * abs(self.scale)

    def times(self, rows: Tensor) -> Tensor:
        """Return `rows @ self` for rows (..., p, a c): (..., p, b n)."""
        (a, _), (c, _) = self.first.shape, self.second.shape
        inside = rows.to(self.first.dtype).unflatten(-1, (a, c)) @ self.second
        return (self.first.mT @ inside).flatten(-2) * self.scale

    def rows(self, part: slice) -> Tensor:
        """Return some rows, multiplied out."""
        index = torch.arange(self.shape[0])[part]
        outer, within = index // len(self.second), index % len(self.second)
        both = self.first[outer].unsqueeze(-1) * self.second[within].unsqueeze(-2)
        return both.flatten(-2) * self.scale

    def inner(self, other: Kron) -> float:
        """Return the Frobenius inner product with another of the same shape."""
        factor = self.scale * other.scale
        if self.first.shape == other.first.shape:
            parts = (self.first * other.first).sum() * (self.second * other.second).sum()
            return factor * float(parts)
        height = max(1, _TILE // self.shape[1])
        parts = [slice(start, start + height) for start in range(0, self.shape[0], height)]
        return sum(float((self.rows(part) * other.rows(part)).sum()) for part in parts)

    def distance(self, other: Kron) -> float:
        """Return the Frobenius norm of this less another of the same shape."""
        square = self.inner(self) - 2 * self.inner(other) + other.inner(other)
        return max(square, 0.0) ** 0.5

    def inner_product(self, up: Tensor, down: Tensor) -> float:
        """Return the Frobenius inner product with `up @ down`, (a c, r) and (r, b n)."""
        return float((self.times(up.mT) * down.to(self.first.dtype)).sum())

    def inner_dense(self, matrix: Tensor) -> float:
        """Return the Frobenius inner product with a matrix (a c, b n)."""
        a, b = self.first.shape
        blocks = matrix.reshape(a, len(self.second), b, -1)
        found = 0.0
        for row, block in zip(self.first, blocks, strict=True):
            sums = (block.to(row.dtype) * self.second.unsqueeze(1)).sum((0, 2))
            found += float(row @ sums)
        return found * self.scale


@dataclass(frozen=True, slots=True, eq=False)
class KronSvd:
    """The SVD of a Kronecker product, from those of the two matrices; from `kron_svd`.

    Attributes:
        matrix: What is decomposed, float64.
        s: (k,), float64, descending: all singular values; 0 where they are only rounding.
        first, second: Singular vectors of the two: left as columns, right as rows; float64.
        order: (k,): the k-th triplet is that of first `order // len(second s)` and second the rest.
    """

    matrix: Kron
    s: Tensor
    first: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]
    order: Tensor = field(repr=False)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return up (out, rank) and down (rank, in) of the best approximation, float32.

        Each has the root of the singular values, as `Svd.factors` has.
        """
        index = self.order[:rank]
        i, j = index // self.second[0].shape[1], index % self.second[0].shape[1]
        root = self.s[:rank].sqrt()
        up = self.first[0][:, None, i] * (self.second[0][None, :, j] * root)
        sign = -root if self.matrix.scale < 0 else root
        down = self.first[1][i, :, None] * (self.second[1][j, None, :] * sign[:, None, None])
        return up.flatten(0, 1).float(), down.flatten(1).float()

    def missed(self, up: Tensor, down: Tensor, square: Tensor) -> Tensor:
        """Frobenius norm of the matrix less `up @ down`, on the CPU; see `FactoredSvd.missed`."""
        both = self.matrix.inner_product(up.cpu().double(), down.cpu().double())
        other = inner(up, down, up, down).cpu()
        return (square.cpu() - 2 * both + other).clamp(min=0).sqrt()


def kron_svd(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], scale: float = 1.0
) -> KronSvd:
    """Return the SVD of scale * kron(A, B), exact to float32 rounding of their factors.

    Args:
        first: A as two factors, (a, r) and (r, b), float32; r at most min(a, b).
        second: B in the same way.
        scale: A finite factor.
    """
    one, other = (factored_svd(*pair) for pair in (first, second))
    s, order = (abs(scale) * one.s.outer(other.s)).flatten().sort(descending=True, stable=True)
    left, right = (up.double() @ down.double() for up, down in (first, second))
    return KronSvd(Kron(left, right, scale), s, _vectors(one), _vectors(other), order)


def _vectors(svd: FactoredSvd) -> tuple[Tensor, Tensor]:
    """Left vectors as columns and right ones as rows, float64; zeros where s is."""
    inverse = torch.where(svd.s > 0, 1 / svd.s, 0.0)
    right = inverse.unsqueeze(-1) * (svd.right @ svd.down.double())
    return svd.up.double() @ svd.left, right
