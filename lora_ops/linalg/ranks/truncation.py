"""A dense change cut to the rank that a rule asks for, going on until the rule is content."""

from __future__ import annotations

from torch import Tensor

from .. import Operator, Svd, spectrum, truncated_svd
from .rules import RankRule


def truncated(
    stack: Tensor | Operator, totals: Tensor, rule: RankRule, *, exact: bool = False, seed: int = 0
) -> list[Svd]:
    """Decompose a stack (b, out, in) as far as the rule asks, each matrix at its own rank.

    Args:
        stack: float32; or a sum that is only multiplied with, of one matrix.
        totals: (b,), float64: squared Frobenius norms, known to the caller anyway; above 0.
        rule: For the kernel that these matrices have; it must leave something.
        exact: Compute the exact truncation instead of one within 1e-3 of its error.
        seed: Of the random start.
    """
    full = min(stack.shape[-2:])
    count = len(stack)
    # What rules choose by comes to the CPU at once: a device is waited for at each number that is asked.
    sums: list[float] = totals.tolist()

    def leading(rank: int) -> Svd:
        return truncated_svd(stack, rank, totals, seed, exact=exact)

    if rule.needs_spectrum:
        known = spectrum(stack.dense() if isinstance(stack, Operator) else stack).cpu()
        ranks = [rule.choose(known[i], sums[i], full) or 1 for i in range(count)]
        svd = leading(max(ranks))
        values = svd.s.cpu()
    else:
        looked_at = rule.first_guess(full)
        while True:
            svd = leading(looked_at)
            values = svd.s.cpu()
            chosen = [rule.choose(values[i], sums[i], full) for i in range(count)]
            ranks = [rank for rank in chosen if rank is not None]
            if len(ranks) == count:
                break
            looked_at = min(full, 2 * looked_at)
    # Directions at rounding level are zero in `s`: no rank is spent on them.
    held = [max(1, min(ranks[i], int((values[i] > 0).sum()))) for i in range(count)]
    return [svd[i].truncate(held[i]) for i in range(count)]
