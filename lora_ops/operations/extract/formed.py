"""What extraction does to one weight where its form is another than a plain LoRA."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...adapters.layers import Layer
from ...linalg import frobenius
from ...linalg.noise import Reading
from ...linalg.ranks.rules import RankRule
from ...models.pairing import Pair
from ...report import Rounding, Weighted
from .kinds.change import Change
from .plan import Plan
from .rounding import rounding_left


@dataclass(frozen=True, slots=True, eq=False)
class Formed:
    """A layer as it is written, and what it misses.

    Attributes:
        layer: Its numbers rounded, on the CPU.
        residual: Frobenius norm of the difference less the layer's change.
        rounding: What is known of rounding, where the rule is `noise`.
        sweeps: How many rounds an iteration took; None without one.
        weighted: What it misses by the inputs that were recorded; None where none were.
    """

    layer: Layer
    residual: float
    rounding: Rounding | None
    sweeps: int | None
    weighted: Weighted | None = None


def formed(
    plan: Plan, both: Pair, delta: Tensor, reading: Reading | None, exact: bool, seed: int
) -> Formed:
    """Approximate a difference in the form that the plan has for it.

    Where it was read for rounding, what stands above that is approximated, with as many numbers as a LoRA of
    it would have.

    Args:
        plan: What is extracted.
        both: Which weight.
        delta: (out, in * kernel), float32, on the device, not zero; overwritten.
        reading: Of the difference, where the rule is `noise`; something stands above the rounding.
        exact: Compute exact truncations.
        seed: Of the random start.
    """
    form, wanted, rule, clean = plan.form_for(both), delta, plan.rule_for(both), None
    if reading is not None and reading.best is not None:
        count = min(plan.most_ranks(both), int((reading.best.s > 0).sum()))
        up, down = reading.best.factors(max(1, count))
        wanted = clean = (up.to(delta) @ down.to(delta)).reshape(delta.shape)
        rule = RankRule("rank", max(1, round(count * form.share)))

    def base() -> Tensor:
        return plan.sides.read_base(both).to(delta).flatten(1)

    how = (plan.dtype, base, plan.factor, plan.convention, exact, seed)
    made = form.make(Change(wanted, both.shape, rule, *how))
    layer = made.layer.in_dtype(both.target, plan.dtype)
    weight = base().cpu().reshape(both.shape) if layer.needs_base else None
    change = layer.delta() if weight is None else layer.change(weight, convention=plan.convention)
    left = delta.sub_(change.to(delta.device).reshape(delta.shape))
    residual = float(frobenius(left))
    known = None
    if reading is not None and clean is not None:
        # What the best estimate leaves of the difference: what the layer leaves, and what lies between the two.
        rest = left + change.to(delta.device).reshape(delta.shape) - clean
        known = rounding_left(reading, left, rest)
    return Formed(layer, residual, known, made.sweeps)
