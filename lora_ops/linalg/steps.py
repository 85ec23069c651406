"""What every block Krylov search has in common: how wide, from where, and how far it goes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

# Share of the short side that a basis may fill: beyond it the exact way is cheaper, and taken.
MOST = 0.75
# What a step gains of what the one before it did, at least and at most.
_FASTEST, _SLOWEST = 0.2, 0.7


def block_width(rank: int) -> int:
    """Half the rank, in multiples of 16: narrow ones gain more a product, wide ones are faster."""
    return max(16, -(-rank // 32) * 16)


@functools.lru_cache(maxsize=32)
def start(side: int, block: int, seed: int) -> Tensor:
    """Return random orthonormal rows (block, side), float32: the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn((side, block), generator=generator))[0].mT


def converged(
    captured: Sequence[Tensor], total: Tensor, tolerance: float, *, half_a_step: bool = False
) -> list[int]:
    """The matrices whose energy still to be gained is below what `tolerance` allows.

    Gains shrink geometrically, by 0.1 to 0.6 a step, and where spectra fall like powers by less from step to
    step. Where they shrink by more than the step before, as on spectra with a shoulder, that will go on.

    Args:
        captured: What the leading directions hold after each step, (b,) each, float64; the last four count.
        total: (b,), float64: what all directions hold.
        tolerance: Excess error accepted, as a share of the best error.
        half_a_step: Whether what was found goes through the matrix once more: of what is still to be gained, that
            leaves about twice the rate of gains.
    """
    if len(captured) < 4:
        return []
    gains = [(more - less).clamp(min=0) for less, more in pairwise(captured[-4:])]
    least = torch.finfo(total.dtype).tiny
    before, rate = (new / old.clamp(min=least) for old, new in pairwise(gains))
    rate = rate * (rate / before.clamp(min=least)).clamp(min=1)
    # After few steps gains seem to shrink faster than they will: half a step more makes up for that.
    rate = rate.clamp(min=0 if half_a_step else _FASTEST, max=_SLOWEST)
    # Slow gains are the least certain: they may well become slower.
    ahead = gains[-1] * rate / (1 - rate) * (2 * rate).clamp(min=0 if half_a_step else 1)
    now = captured[-1]
    # d(error)/error is half of d(error squared)/(error squared); the second term is float32's floor.
    allowed = 2 * tolerance * (total - now).clamp(min=0) + 1e-12 * total
    return (ahead <= allowed).nonzero()[:, 0].tolist()
