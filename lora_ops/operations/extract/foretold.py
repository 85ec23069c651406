"""What an extraction will do, from its plan: the layers, their ranks at most, and the size at most."""

from __future__ import annotations

from pathlib import Path

from ...adapters.formats import Format
from ...adapters.metadata import metadata_room
from ...files.header import header_room
from ...linalg.ranks.budgets import Budget
from ..preview import PlannedLayer, Preview
from .kinds.table import LORA
from .plan import Plan


def preview_extraction(plan: Plan, output: Path) -> Preview:
    """Return what an extraction will do, for people and for machines.

    Args:
        plan: From `plan_file`.
        output: Where to.
    """
    model, dtype = plan.pairing.architecture, plan.element.title
    return Preview(
        output=str(output),
        size_at_most=largest_size(plan),
        layers=tuple(
            PlannedLayer(
                *(both.target, both.component, both.kind, both.shape),
                rank_at_most=plan.form_for(both).rank(
                    both.shape, plan.most_ranks(both), plan.factor
                ),
            )
            for both in plan.pairing.candidates
        ),
        notes=() if plan.why is None else (plan.why,),
        told=f"{plan.form.title}, rank rule {plan.rule}, {dtype}"
        + ("" if plan.relative is None else f", relative to the {plan.relative} norms of base"),
        settings={
            "kind": plan.form.name,
            "rank": str(plan.rule),
            "dtype": dtype,
            **({} if plan.relative is None else {"norm": plan.relative}),
        },
        architecture=model.title if model else None,
    )


def largest_size(plan: Plan) -> int:
    """Bytes of the factors if every layer gets the largest rank that the rule allows it."""
    numbers = sum(
        plan.form_for(both).size(both.shape, plan.most_ranks(both), plan.factor)
        for both in plan.pairing.candidates
    )
    size = numbers * plan.element.bits // 8 + plan.whole_size
    if isinstance(plan.rule, Budget) and plan.rule.kind == "size":
        return min(size, int(plan.rule.value))
    return size


def header_size(plan: Plan, scheme: Format) -> int:
    """Bytes for the header at most: of every pair all tensors of its form, under names of any format."""
    pairs = [*plan.pairing.candidates, *(plan.pairing.rest if plan.full_differences else ())]
    longest = max(len(both.target.encode()) for both in pairs)
    rows = [
        (f"{both.target}{scheme.down}{'_' * 24}{role}", "BF16", (*both.shape, 10**6))
        for both in pairs
        for role in (
            "up",
            "down",
            "alpha",
            *(("mid", "dora_scale") if plan.form is not LORA else ()),
        )
    ]
    told = metadata_room(len(pairs), longest, plan.sides.tuned.metadata)
    return header_room(rows, spare=told)
