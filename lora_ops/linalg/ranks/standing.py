"""The rank rule `noise`: a dense change cut to what stands above the rounding of its storage."""

from __future__ import annotations

from torch import Tensor

from ..decompose import truncated_svd
from ..noise import Profile, Reading, evened, read_change, settle
from ..norms import frobenius
from .rules import RankRule

# Directions looked at first: more are, for as long as the last one stands above the noise.
_FIRST = 64


def standing(
    delta: Tensor, profile: Profile, rule: RankRule, *, exact: bool = False, seed: int = 0
) -> Reading:
    """Return what of a difference stands above the rounding, and how much of it there is.

    With `max=` as many directions more are looked at as may be kept: the best of those above are told from
    each other only at their true size. With `min=` some below the floor are kept, as they are.

    Args:
        delta: (out, in), float32.
        profile: Of its rounding, as storage has it.
        rule: `noise`, with its limits.
        exact: Compute exact truncations instead of some within 1e-3 of their error.
        seed: Of the random start.
    """
    full = min(delta.shape)
    even, profile = evened(delta, profile)
    total = frobenius(even).square()
    looked_at = min(full, max(_FIRST, rule.least))
    limit = full if rule.most is None else min(full, max(looked_at, 2 * rule.most))
    while True:
        svd = truncated_svd(even, looked_at, total, seed, exact=exact)
        found = settle(svd.s.cpu(), float(total), profile.shape)
        if found is not None or looked_at == limit:
            break
        looked_at = min(limit, 2 * looked_at)
    above, deviation = found or (looked_at, 1.0)
    kept = max(above, min(rule.least, looked_at)) if above else 0
    square = float(frobenius(delta)) ** 2
    return read_change(svd.truncate(kept), above, deviation, profile, square)
