"""What extraction does to one weight of which is known what goes into it: the error of the output counts."""

from __future__ import annotations

from torch import Tensor

from ...adapters.layers import low_rank
from ...linalg import residual_
from ...linalg.moments import Moment, weighted_factors
from ...linalg.storage import rounded
from ...models.pairing import Pair
from ...report import Weighted
from .formed import Formed
from .plan import Plan


def weighed(
    plan: Plan, both: Pair, delta: Tensor, moment: Moment, exact: bool, seed: int
) -> Formed:
    """Cut a difference to the rank whose output is closest to its own, for the inputs that were recorded.

    Args:
        plan: What is extracted.
        both: Which weight.
        delta: (out, in * kernel), float32, on the device, not zero; overwritten.
        moment: Of its inputs.
        exact: Compute exact truncations.
        seed: Of the random start.
    """
    factors = weighted_factors(delta, moment, plan.rule_for(both), exact=exact, seed=seed)
    up, down = (rounded(one.cpu(), plan.dtype, both.target) for one in factors)
    norm = moment.norm(delta)
    residual = float(residual_(delta, up.to(delta), down.to(delta)))
    layer = low_rank(up, down, both.shape, alpha=float(down.shape[0]))
    return Formed(layer, residual, None, None, Weighted(norm, moment.norm(delta)))
