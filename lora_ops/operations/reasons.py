"""Why a layer is not in a result, where several operations say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..linalg.ranks.budgets import Budget
from ..report import LayerReport, counted

RANK_ZERO = "rank 0 by the rule"
STRENGTH_ZERO = "strength 0"


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
