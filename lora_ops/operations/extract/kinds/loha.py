"""The change as a LoHa: the element-wise product of two matrices of low rank."""

from __future__ import annotations

from collections.abc import Sequence

from ....adapters.layers import LohaLayer
from ....linalg.hadamard import nearest_hadamard
from .change import Change, Made, pair_size, sides


def make_loha(change: Change) -> Made:
    """Return the LoHa that alternating least squares ends at, and after how many sweeps."""
    rank = change.rule.first_guess(min(change.delta.shape))
    found = nearest_hadamard(change.delta, rank, exact=change.exact, seed=change.seed)
    return Made(
        LohaLayer(found.up_1, found.down_1, found.up_2, found.down_2, alpha=float(rank)),
        found.sweeps,
    )


def loha_size(shape: Sequence[int], rank: int, _factor: int) -> int:
    """How many numbers its four factors have."""
    return 2 * pair_size(shape, rank)


def loha_rank(shape: Sequence[int], rank: int, _factor: int) -> int:
    """The largest rank that its change can have."""
    return min(rank * rank, *sides(shape))
