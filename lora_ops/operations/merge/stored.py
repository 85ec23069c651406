"""How the tensors of a merge are stored: as its recipe says, or as its base has them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from ...models.architectures import parameters
from ..weights.gguf_plan import with_gguf, writes_gguf
from ..weights.rounding import seed_of
from ..weights.storing_plan import Wanted, with_storing
from .plan import MergePlan, asked_elements


def stored_plan(plan: MergePlan, output: Path | None = None) -> MergePlan:
    """Return a plan whose tensors are stored as its recipe says, or else as the base has them, with scales too.

    Args:
        plan: From `plan_merge`.
        output: Where the result is to go.

    Raises:
        ArgumentError: See `with_storing`, or `writes_gguf` and `with_gguf`.
    """
    asked = plan.recipe.output
    by_chance = seed_of(asked.rounding, 0)  # of which seed, the steps say
    wanted = Wanted(asked.to, asked.whole, asked.quantise, by_chance)
    numbers = asked_elements(plan.recipe, parameters(plan.base))
    if writes_gguf(output, wanted.to, plan.base):
        return _in_gguf(plan, wanted, numbers)
    tensors, notes = with_storing(plan.tensors, plan.base, wanted, numbers)
    return replace(plan, tensors=tensors, notes=(*plan.notes, *notes))


def _in_gguf(plan: MergePlan, wanted: Wanted, numbers: Container[str]) -> MergePlan:
    """The plan of a merge whose result is a GGUF file."""
    tensors, gguf = with_gguf(plan.tensors, plan.base, wanted, numbers)
    known = parameters(plan.base)
    held = {name for name, one in known.items() if any(key in tensors for key in one.keys)}
    taken = (
        key in tensors and one.source is not plan.base and not one.steps
        for key, one in plan.tensors.items()
    )
    return replace(
        plan,
        tensors=tensors,
        merged=tuple(name for name in plan.merged if name in held),
        taken=sum(taken),
        copied=tuple(key for key in plan.copied if key in tensors),
        only_base=tuple(name for name in plan.only_base if name in held),
        notes=(*plan.notes, *gguf.notes),
        gguf=gguf,
    )
