"""The nearest Kronecker product: of all matrices `kron(A, B)` the one that is closest to a given one.

A matrix of blocks, rearranged so that each block is a row, turns `kron(A, B)` into the outer product of the
numbers of A and those of B, so the nearest one is a leading singular pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .decompose import truncated_svd
from .norms import frobenius
from .svd import Svd

# Where B has a rank: another round that gains less than this share of the squared change is the last one.
_GAIN, _ROUNDS = 1e-5, 20


def rearranged(matrix: Tensor, outer: tuple[int, int]) -> Tensor:
    """Return the blocks of a matrix as rows, (a b, c n), fresh memory.

    Args:
        matrix: (a c, b n).
        outer: (a, b), how many blocks there are down and across.

    Source: Van Loan and Pitsianis (1993), Approximation with Kronecker products, their R(A).
    """
    a, b = outer
    blocks = matrix.unflatten(0, (a, -1)).unflatten(-1, (b, -1))
    return blocks.transpose(1, 2).reshape(a * b, -1)


def nearest_kron(
    matrix: Tensor, outer: tuple[int, int], *, exact: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return A and B of the nearest Kronecker product, each with half of its norm.

    Args:
        matrix: (a c, b n), float32, not zero.
        outer: (a, b), the shape of A.
        exact: Compute the exact singular pair instead of one within 1e-3 of its error.
        seed: Of the random start.

    Returns:
        A (a, b) and B (c, n), float32.

    Source: Van Loan and Pitsianis (1993), theorem 2.1: ‖M - A ⊗ B‖ is ‖R(M) - vec A vec Bᵀ‖.
    """
    rows = rearranged(matrix, outer)
    first, second = truncated_svd(rows, 1, frobenius(rows).square(), seed, exact=exact).factors()
    return first.reshape(outer), second.reshape(matrix.shape[0] // outer[0], -1)


def nearest_thin_kron(
    matrix: Tensor, first: Tensor, rank: int, *, exact: bool = False, seed: int = 0
) -> tuple[Tensor, Svd]:
    """Return A and B of the nearest Kronecker product where B may have no more than so many directions.

    Each of the two is the best for the other in turn: A is a projection, B a truncation of one. The error never
    grows; it ends where a round gains next to nothing. What it ends at is the best near the start, not of all.

    Args:
        matrix: (a c, b n), float32, not zero.
        first: (a, b), A to start from: that of the nearest product without a limit.
        rank: The most directions of B.
        exact: Compute exact truncations.
        seed: Of the random start.

    Returns:
        A (a, b), of norm 1, and B as its leading triplets.
    """
    rows = rearranged(matrix, (first.shape[0], first.shape[1]))
    height, kept = matrix.shape[0] // first.shape[0], -1.0
    total = float(frobenius(matrix).square())
    for _ in range(_ROUNDS):
        unit = first.flatten() / torch.linalg.vector_norm(first)
        best = (unit @ rows).reshape(height, -1)
        svd = truncated_svd(best, rank, frobenius(best).square(), seed, exact=exact)
        # With A of norm 1 the squared error is ‖M‖² - ‖B‖².
        gained, kept = float(svd.s.square().sum()) - kept, float(svd.s.square().sum())
        if gained <= _GAIN * total:
            break
        second = (svd.u * svd.s.to(svd.u)) @ svd.vh
        first = (rows @ second.flatten()).reshape(first.shape)
    return unit.reshape(first.shape), svd
