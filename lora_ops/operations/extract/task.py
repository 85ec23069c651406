"""What is to become of one parameter, and the order in which parameters are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...adapters.layers import (
    DoraLayer,
    FullLayer,
    LohaLayer,
    LokrLayer,
    LoraLayer,
    ReplacementLayer,
)
from ...models.pairing import Pair
from ...run.output import Sink
from ...run.packed import by_name
from .plan import Plan

#: What results of an extraction, and what is said of them, may be made of.
MADE = {
    **Sink.classes,
    **by_name(LoraLayer, DoraLayer, LokrLayer, LohaLayer, FullLayer, ReplacementLayer),
}


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One parameter, and what is to become of it.

    Attributes:
        pair: Which one.
        has_factors: Whether it gets a low rank; else it is kept whole.
        reason: Why it is left out; None where it is not.
    """

    pair: Pair
    has_factors: bool = False
    reason: str | None = None


def in_order(plan: Plan, *groups: Sequence[Pair]) -> list[list[Pair]]:
    """Return groups of pairs in the order of the base, which is the same for all that came of it."""
    places = {key: place for place, key in enumerate(plan.sides.base.keys())}

    def place(both: Pair) -> tuple[int, tuple[int, int], str]:
        return places[both.base.key], both.base.rows or (0, 0), both.name

    return [sorted(pairs, key=place) for pairs in groups]
