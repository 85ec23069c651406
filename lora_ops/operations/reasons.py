"""Why a layer is not in a result, where several operations say the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..linalg.ranks.budgets import Budget
from ..report import LayerReport, Skip, counted
from ..text import human_error

RANK_ZERO = "rank 0 by the rule"
STRENGTH_ZERO = "strength 0"
# What rounding the factors adds to an error is no reason to say that it was missed.
_NEARLY = 1.01


def mean_notes(budget: Budget, ranks: Sequence[int], none: int) -> Iterator[str]:
    """What a mean is over: also what got no rank.

    Args:
        budget: Of any kind.
        ranks: Those that layers got.
        none: How many layers got none.
    """
    if budget.kind == "mean" and none and ranks:
        yield (
            f"`mean={budget.value:g}` is over {counted(none, 'layer')} too that got no rank: "
            f"the others have {sum(ranks) / len(ranks):.3g} on average"
        )


def missed_notes(
    budget: Budget, layers: Sequence[LayerReport], skips: Sequence[Skip]
) -> Iterator[str]:
    """Say that an error is larger than was asked for, where limits of the ranks are why.

    Args:
        budget: Of any kind.
        layers: Those that share in it.
        skips: Among them those that got no rank.
    """
    limits = {"`max=`": budget.most, "`conv=`": budget.conv}
    given = [name for name, limit in limits.items() if limit is not None]
    if budget.kind != "total_error" or not given:
        return
    left = math.fsum(one.norm**2 for one in skips if one.reason == RANK_ZERO)
    whole = left + math.fsum(one.norm**2 for one in layers)
    lost = left + math.fsum(one.residual**2 for one in layers)
    error = math.sqrt(lost / whole) if whole else 0.0
    if error > budget.value * _NEARLY:
        yield (
            f"`{budget}` is out of reach: the error is {human_error(error)}, with all the ranks that "
            f"{' and '.join(given)} {'allow' if len(given) > 1 else 'allows'}"
        )


def unrecorded(layers: Sequence[LayerReport]) -> Iterator[str]:
    """How many layers with factors were cut without a record of what goes into them."""
    plain = sum(one.weighted is None for one in layers)
    if plain:
        yield f"{counted(plain, 'layer')} without a record of activations: cut by the weights alone"


def of_one_weight(targets: Sequence[str]) -> Iterator[str]:
    """Where several layers change one weight, and one of them is made from it.

    Args:
        targets: Of those weights.
    """
    if targets:
        yield (
            f"{counted(len(targets), 'weight')}, the first `{targets[0]}`, of several layers: each is "
            "made from the weight of the checkpoint, and their changes are added; ComfyUI applies "
            "one after another"
        )
