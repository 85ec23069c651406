"""What is to become of one parameter, and the order in which parameters are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...models.architectures import parameters
from ...models.pairing import Pair
from .plan import Plan


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
    places = {name: place for place, name in enumerate(parameters(plan.sides.base))}
    return [sorted(pairs, key=lambda both: places[both.name]) for pairs in groups]
