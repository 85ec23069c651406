"""The nearest element-wise product of two matrices of low rank, by alternating least squares.

With three of the four factors fixed, the fourth is a linear least-squares problem, row by row or column by
column, so each step lessens the error or leaves it. What it ends at is the best near the start, not of all: the
problem has many such ends, and none is known to be the least.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .decompose import truncated_svd
from .norms import frobenius
from .orthonormal import wide

# Another sweep that gains less than this share of the error is the last one.
_GAIN, _SWEEPS = 1e-3, 40
# What is added to the normal equations, as a share of their trace: it settles what the numbers leave open.
_RIDGE, _RIDGE_64 = 1e-6, 1e-14
_TINY = 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class Hadamard:
    """(up_1 @ down_1) * (up_2 @ down_2), the second product element by element.

    Attributes:
        up_1, up_2: (out, r).
        down_1, down_2: (r, in).
        sweeps: How often all four were solved for.
        residual: Frobenius norm of the matrix less this.
    """

    up_1: Tensor
    down_1: Tensor
    up_2: Tensor
    down_2: Tensor
    sweeps: int
    residual: float


def nearest_hadamard(matrix: Tensor, rank: int, *, exact: bool = False, seed: int = 0) -> Hadamard:
    """Return the element-wise product of two matrices of a rank that alternating least squares ends at.

    It starts from truncations of `sign(M) sqrt(|M|)` and `sqrt(|M|)`, whose element-wise product is M: the second
    holds what rows and columns differ in by size. A step that does not lessen the error is not taken.

    Args:
        matrix: (out, in), float32 or float64, not zero.
        rank: Of both, 1 to min(out, in).
        exact: Start from exact truncations.
        seed: Of the random start of those.

    Source: Hyeon-Woo et al. (2021), arXiv:2108.06098, for the form.
    """
    root = matrix.abs().sqrt()
    halves = [
        truncated_svd(half, rank, frobenius(half).square(), seed, exact=exact).factors()
        for half in (matrix.sign() * root, root)
    ]
    (up_1, down_1), (up_2, down_2) = ([one.to(matrix) for one in half] for half in halves)
    found = Hadamard(up_1, down_1, up_2, down_2, 0, _missed(matrix, up_1, down_1, up_2, down_2))
    for sweep in range(1, _SWEEPS + 1):
        up_1, down_1 = _half(matrix, up_2 @ down_2, down_1)
        up_2, down_2 = _half(matrix, up_1 @ down_1, down_2)
        residual = _missed(matrix, up_1, down_1, up_2, down_2)
        if residual >= found.residual:
            break
        gain = 1 - residual / found.residual
        found = Hadamard(up_1, down_1, up_2, down_2, sweep, residual)
        if gain < _GAIN:
            break
    return found


def _half(matrix: Tensor, other: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The best up for a down beside the other product, then the best down for that up."""
    up = solve_rows(matrix, other, down)
    down = solve_rows(matrix.T, other.T, up.T).T
    # Both of one size, so that neither leaves the range of 16 bits however long this goes on.
    balance = (
        torch.linalg.vector_norm(down) / torch.linalg.vector_norm(up).clamp(min=_TINY)
    ).sqrt()
    return up * balance, down / balance.clamp(min=_TINY)


def solve_rows(matrix: Tensor, other: Tensor, down: Tensor) -> Tensor:
    """Return the up (out, r) for which `(up @ down) * other` is closest to a matrix.

    Row i is the least-squares solution x of `(x @ down) * other[i] = matrix[i]`; its normal equations have
    `down diag(other[i]²) downᵀ`, of which all rows are one product.

    Args:
        matrix: (out, in).
        other: (out, in).
        down: (r, in).
    """
    rank = len(down)
    upper = torch.triu_indices(rank, rank, device=down.device)
    half = other.square() @ (down[upper[0]] * down[upper[1]]).T
    normal = half.new_zeros((len(matrix), rank, rank))
    normal[:, upper[0], upper[1]] = normal[:, upper[1], upper[0]] = half
    normal = wide(normal)
    trace = normal.diagonal(dim1=1, dim2=2).sum(1)
    share = _RIDGE_64 if matrix.dtype == torch.float64 else _RIDGE
    ridge = (share * trace).clamp(min=_TINY)
    normal.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    right = wide((other * matrix) @ down.T)
    return torch.linalg.solve(normal, right.unsqueeze(-1)).squeeze(-1).to(matrix)


def _missed(matrix: Tensor, *factors: Tensor) -> float:
    up_1, down_1, up_2, down_2 = factors
    return float(frobenius((up_1 @ down_1).mul_(up_2 @ down_2).sub_(matrix)))
