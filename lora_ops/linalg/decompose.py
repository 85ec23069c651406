"""Which decomposition for which matrix: the one place that chooses."""

from __future__ import annotations

from torch import Tensor

from .gram import SMALL, gram_svd
from .krylov import krylov_svd
from .operators import Operator
from .steps import block_width
from .svd import Svd


def truncated_svd(
    matrix: Tensor | Operator,
    rank: int,
    total: Tensor,
    seed: int = 0,
    *,
    exact: bool = False,
) -> Svd:
    """Return the `rank` leading singular triplets, exactly where that is asked for or cheaper.

    Args:
        matrix: (..., out, in), float32; or a sum that is only multiplied with.
        rank: 1 to min(out, in).
        total: (...), float64: squared Frobenius norms, known to the caller anyway.
        seed: Seed of the random start.
        exact: Ask for the exact truncation whatever it costs.
    """
    side = min(matrix.shape[-2:])
    # Up to SMALL an eigenproblem costs less than the steps of an iteration; and an iteration takes
    # about six blocks, which is no gain once they fill half of the short side.
    if exact or side <= SMALL or 12 * block_width(rank) > side:
        return gram_svd(matrix.dense() if isinstance(matrix, Operator) else matrix, rank)
    return krylov_svd(matrix, rank, total, seed)
