"""The change as a LoKr: the nearest Kronecker product of a small matrix and a larger one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....adapters.layers import LokrLayer
from ....linalg.nearest_kron import nearest_kron, nearest_thin_kron
from .change import Change, Made, sides


def make_lokr(change: Change) -> Made:
    """Return the nearest LoKr: w1 whole, w2 whole or in factors, by the rule and as LyCORIS would have it.

    The rule is asked about the singular values of w2. Where it wants half of the longer side of w2 or more
    directions, or factors would be no smaller, w2 is whole; so it is in LyCORIS, whose loader goes by that.
    """
    (a, b), (c, d), kernel = split(change.shape, change.factor)
    first, second = nearest_kron(change.delta, (a, b), exact=change.exact, seed=change.seed)
    svd = change.cut(second)
    rank = thin_rank(change.shape, change.factor, len(svd.s))
    if rank is None:
        return Made(LokrLayer(w1=first, w2=second.reshape(c, d, *kernel), alpha=1.0))
    first, svd = nearest_thin_kron(change.delta, first, rank, exact=change.exact, seed=change.seed)
    up, down = svd.factors()
    return Made(LokrLayer(w1=first, w2_a=up, w2_b=down, alpha=float(down.shape[0])))


def lokr_size(shape: Sequence[int], rank: int, factor: int) -> int:
    """How many numbers a LoKr has at most."""
    (a, b), (c, d), kernel = split(shape, factor)
    _, width = sides((c, d, *kernel))
    thin = thin_rank(shape, factor, rank)
    return a * b + (c * width if thin is None else thin * (c + width))


def lokr_rank(shape: Sequence[int], rank: int, factor: int) -> int:
    """The largest rank that its change can have."""
    (a, b), (c, d), kernel = split(shape, factor)
    whole = min(sides((c, d, *kernel)))
    thin = thin_rank(shape, factor, rank)
    return min(min(a, b) * (whole if thin is None else thin), *sides(shape))


def thin_rank(shape: Sequence[int], factor: int, rank: int) -> int | None:
    """The inner size of w2's factors where so many directions are wanted; None: w2 is whole.

    ComfyUI multiplies a whole w2 with three axes of kernel wrongly, so such a one always has factors.
    """
    _, (c, d), kernel = split(shape, factor)
    height, width = sides((c, d, *kernel))
    rank = min(rank, height, width)
    limit = (max(c, d) - 1) // 2  # below half of the longer side
    if len(kernel) > 2 and limit:
        return min(rank, limit)
    return rank if rank <= limit and rank * (height + width) < height * width else None


def split(
    shape: Sequence[int], factor: int
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, ...]]:
    """Return the shapes (a, b) of w1 and (c, d) of w2, and the kernel, which is w2's."""
    (a, c), (b, d) = (factorization(side, factor) for side in shape[:2])
    return (a, b), (c, d), tuple(shape[2:])


def factorization(side: int, factor: int) -> tuple[int, int]:
    """Return two whole numbers, the smaller first, whose product is a side.

    Args:
        side: Of a weight, 1 or more.
        factor: What one of the two is to be, where it divides the side; else the smaller is the largest divisor
            that does not exceed it. -1: the two are as even as can be.

    Source: `factorization` of LyCORIS (Yeh et al., 2023, arXiv:2309.14859), as it behaves.
    """
    if factor > 0 and side % factor == 0:
        return min(factor, side // factor), max(factor, side // factor)
    most = side if factor < 0 else factor
    small = max(one for one in range(1, math.isqrt(side) + 1) if side % one == 0 and one <= most)
    return small, side // small
