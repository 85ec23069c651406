"""One layer at another rank, cut so that its output is closest to what it was: by the inputs recorded."""

from __future__ import annotations

from ...adapters.edited import ZERO, edited, finite, skipped
from ...adapters.layers import Layer, innermost, rewrapped
from ...linalg import FactoredSvd, frobenius
from ...linalg.moments import Moment, weighted_factors, weighted_product
from ...linalg.ranks.rules import RankRule
from ...report import Weighted
from ...run.job import Outcome
from ..reasons import RANK_ZERO
from .decomposed import Decomposed, Dense
from .layer import Resizing, can_stay, kept, written


def weighed(known: Decomposed | Dense, resizing: Resizing, moment: Moment) -> Outcome[Layer]:
    """Return one layer at the rank of a rule whose output is closest to its own.

    Args:
        known: With its change.
        resizing: With a rule that chooses by one layer.
        moment: Of the inputs that were recorded.
    """
    target, layer = known.target, known.layer
    svd = None if isinstance(known, Dense) else known.svd
    delta = layer.delta().flatten(1) if isinstance(known, Decomposed) else known.matrix
    norm = finite(frobenius(delta), target, layer)
    rule = resizing.rule
    if norm == 0:
        return skipped(target, layer, ZERO, norm)
    if not isinstance(rule, RankRule) or rule.for_kernel(layer.shape[2:]).leaves_out:
        return skipped(target, layer, RANK_ZERO, norm)
    rule = rule.for_kernel(layer.shape[2:])
    if isinstance(svd, FactoredSvd):
        factors = weighted_product(svd.up, svd.down, moment, rule)
    else:
        factors = weighted_factors(delta, moment, rule, exact=resizing.exact)
    if factors[0].shape[1] >= layer.rank and can_stay(layer):
        result = rewrapped(kept(target, innermost(layer), resizing), layer)
    else:
        ((result, _),) = written([known], [factors], resizing)
    left = delta - result.delta().flatten(1).to(delta)
    return edited(
        *(target, result),
        norm=norm,
        residual=float(frobenius(left)),
        was=(layer.rank,),
        made_of=(layer,),
        weighted=Weighted(moment.norm(delta), moment.norm(left)),
    )
