"""A dense change cut to the rank that a rule asks for, going on until the rule is content."""

from __future__ import annotations

import torch
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

    if rule.needs_spectrum:
        known = spectrum(stack.dense() if isinstance(stack, Operator) else stack).cpu()
        ranks = [rule.choose(known[i], sums[i], full) or 1 for i in range(count)]
        svd = truncated_svd(stack, max(ranks), totals, seed, exact=exact)
        values = svd.s.cpu()
        return [_held(svd[i], values[i], ranks[i]) for i in range(count)]
    found: dict[int, Svd] = {}
    sought, looked_at = list(range(count)), rule.first_guess(full)
    while True:
        svd = truncated_svd(stack, looked_at, totals, seed, exact=exact)
        values = svd.s.cpu()
        for i, index in enumerate(sought):
            rank = rule.choose(values[i], sums[index], full)
            if rank is not None:
                found[index] = _held(svd[i], values[i], rank)
        open_ = [i for i, index in enumerate(sought) if index not in found]
        if not open_:
            return [found[index] for index in range(count)]
        # Only these are looked at further, so that none depends on the others of its batch.
        if len(open_) < len(sought):
            stack = torch.stack([stack[i] for i in open_])
            totals = torch.stack([totals[i] for i in open_])
        sought = [sought[i] for i in open_]
        looked_at = min(full, 2 * looked_at)


def _held(svd: Svd, values: Tensor, rank: int) -> Svd:
    """That many directions; none is spent on those at rounding level, which are zero in `s`."""
    return svd.truncate(max(1, min(rank, int((values > 0).sum()))))
