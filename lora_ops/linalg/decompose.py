"""Which decomposition for which matrix: the one place that chooses."""

from __future__ import annotations

import torch
from torch import Tensor

from .gram import gram_svd
from .krylov import block_width, krylov_svd
from .svd import Svd

# Up to this side an exact eigenproblem costs less than the steps of an iteration.
SMALL = 256


def truncated_svd(
    matrix: Tensor,
    rank: int,
    total: Tensor,
    generator: torch.Generator,
    *,
    exact: bool = False,
) -> Svd:
    """Return the `rank` leading singular triplets, exactly where that is asked for or cheaper.

    Args:
        matrix: (..., out, in), float32.
        rank: 1 to min(out, in).
        total: (...), float64: squared Frobenius norms, known to the caller anyway.
        generator: Source of the random start, on the CPU.
        exact: Ask for the exact truncation whatever it costs.
    """
    side = min(matrix.shape[-2:])
    # A Krylov space of about six blocks is needed: no gain once it fills a third of the short side.
    if exact or side <= SMALL or 6 * block_width(rank) > side:
        return gram_svd(matrix, rank)
    return krylov_svd(matrix, rank, total, generator)
