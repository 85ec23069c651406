"""Extraction: from two checkpoints to the low-rank change that turns one into the other."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ...adapters.adapter import Adapter
from ...adapters.layers import Layer
from ...errors import MismatchError
from ...linalg.ranks.budgets import Budget
from ...linalg.ranks.rules import RankRule
from ...report import LayerReport, Report, Skip, counted
from ...run.devices import Placement, place
from ...run.job import Job, Outcome, Work
from ...run.stream import stream
from ...run.workers import Progress
from ...source import TensorSource
from ..reasons import RANK_ZERO, mean_notes, missed_notes, unrecorded
from .kinds.table import LORA
from .layer import EXCLUDED, factor_batch, keep_whole, leave_out
from .plan import Plan, PlanOptions, plan_extraction
from .rounding import rounding_notes
from .spending import with_ranks
from .task import Task, in_order

if TYPE_CHECKING:
    from typing_extensions import Unpack


def extract(
    base: TensorSource,
    tuned: TensorSource,
    rule: str | int | RankRule | Budget | None = None,
    *,
    exact: bool = False,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
    **options: Unpack[PlanOptions],
) -> tuple[Adapter, Report]:
    """Return the adapter that takes `base` closest to `tuned`, all in memory, and its report.

    Args:
        base: The checkpoint that was started from; a dict of tensors as `DictSource(tensors)`.
        tuned: The checkpoint that came of it.
        rule: How many directions a layer gets; see `ranks` and `budgets`, and `plan_extraction` for None.
            A budget of size is that of the factors.
        exact: Compute the exact truncation instead of one within 1e-3 of its error.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        seed: Seed of the random start.
        progress: Called after each parameter.
        **options: See `PlanOptions`.

    Raises:
        MismatchError: The two do not belong together, or no layer differs.
        NonFiniteError: NaN or infinity in a weight, or out of the range of the factors' dtype.
    """
    started = time.perf_counter()
    plan = plan_extraction(base, tuned, rule, **options)
    where = place(device)
    plan, progress = with_ranks(plan, exact=exact, seed=seed, placement=where, progress=progress)
    work = extraction_work(plan, exact=exact, seed=seed)
    outcomes = list(stream(work, where, progress=progress))
    layers = {outcome.name: outcome.value for outcome in outcomes if outcome.value}
    report = summarise(plan, (outcome.report for outcome in outcomes))
    return Adapter(layers, {}, {}, "comfy"), replace(report, seconds=time.perf_counter() - started)


def extraction_work(
    plan: Plan, *, exact: bool = False, seed: int = 0
) -> Work[Task, Outcome[Layer]]:
    """Return the jobs of an extraction, and how they are done.

    They are in the order of the base, which is the same for all that came of it.

    Args:
        plan: From `plan_extraction`; one with a budget `with_ranks`.
        exact: Compute the exact truncation.
        seed: Seed of the random start. A layer's result depends on the seed and the layer only.
    """
    pairing = plan.pairing
    candidates, rest, excluded = in_order(plan, pairing.candidates, pairing.rest, pairing.excluded)
    tasks = [
        *(
            Task(both, reason=RANK_ZERO) if plan.is_left_out(both) else Task(both, True)
            for both in candidates
        ),
        *(Task(both, reason=plan.why_not(both)) for both in rest),
        *(Task(both, reason=EXCLUDED) for both in excluded),
    ]
    return Work([_job(plan, task) for task in tasks], partial(_compute, plan, exact, seed))


def _job(plan: Plan, task: Task) -> Job[Task]:
    both = task.pair
    if not task.has_factors:
        return Job(
            both.target, task, math.prod(both.shape), alike=both.target, shape=tuple(both.shape)
        )
    # Batches are of layers of one shape, kernel included, that have one rule.
    alike = (both.shape, plan.rule_for(both))
    need, shape = plan.working_set(both), tuple(both.shape)
    return Job(both.target, task, math.prod(both.shape), need, alike, shape)


def _compute(
    plan: Plan, exact: bool, seed: int, tasks: Sequence[Task], placement: Placement
) -> list[Outcome[Layer]]:
    if all(task.has_factors for task in tasks):
        return factor_batch(plan, [task.pair for task in tasks], placement, exact, seed)
    return [
        keep_whole(plan, task.pair)
        if task.reason is None
        else leave_out(plan, task.pair, task.reason)
        for task in tasks
    ]


def summarise(plan: Plan, reports: Iterable[LayerReport | Skip]) -> Report:
    """Sort outcomes into a report, with notes on what the pairing and the ranks came to.

    Raises:
        MismatchError: No layer differs.
    """
    known = list(reports)
    layers = tuple(one for one in known if isinstance(one, LayerReport))
    skips = tuple(one for one in known if isinstance(one, Skip))
    if not layers:
        reasons = Counter(skip.reason for skip in skips)
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise MismatchError(
            f"no layer differs between {plan.sides.base.name} and {plan.sides.tuned.name} "
            f"({told}); nothing was written: check that the second is the tuned checkpoint"
        )
    return Report(layers, skips, tuple(_notes(plan, layers, skips)))


def _notes(plan: Plan, layers: Sequence[LayerReport], skips: Sequence[Skip]) -> Iterator[str]:
    pairing = plan.pairing
    yield from rounding_notes(plan, layers)
    yield from pairing.absent
    if any(layer.component == "vae" for layer in layers):
        yield "no program known to us applies the VAE's part of a LoRA"
    for names, where in ((pairing.only_base, "base"), (pairing.only_tuned, "tuned")):
        if names:
            yield f"{counted(len(names), 'weight')} only in {where}, the first `{names[0]}`"
    if pairing.others:
        yield (
            f"{counted(len(pairing.others), 'parameter')} that no LoRA holds on one side only or of "
            f"two shapes, the first `{pairing.others[0]}`"
        )
    if pairing.reshaped:
        name, old, new = pairing.reshaped[0]
        yield f"{counted(len(pairing.reshaped), 'weight')} of two shapes, the first `{name}`: {old} and {new}"
    yield from _sweeps(layers)
    if plan.activations is not None:
        yield from unrecorded([x for x in layers if x.kind.startswith(("linear", "conv"))])
    if isinstance(plan.rule, Budget):
        none = sum(skip.reason == RANK_ZERO for skip in skips)
        ranked = [layer for layer in layers if layer.rank]
        yield from mean_notes(plan.rule, [layer.rank for layer in ranked], none)
        yield from missed_notes(plan.rule, ranked, skips)
        return
    for rule, kernel in ((plan.rule, False), (plan.rule.conv, True)):
        if rule is None or rule.kind != "rank":
            continue
        if plan.form.rank is not LORA.rank:
            continue  # the rank that is asked for is not that of the change
        lowered = sum(
            layer.rank < rule.value and plan.rule.for_kernel(layer.shape[2:]) is rule
            for layer in layers
            if layer.kind.startswith(("linear", "conv"))
        )
        if lowered:
            conv = "conv " if kernel else ""
            layers_ = counted(lowered, "layer")
            yield f"{conv}rank {rule.value:g} lowered in {layers_}: the change has no more"


def _sweeps(layers: Sequence[LayerReport]) -> Iterator[str]:
    """How long an iteration went on."""
    known = [layer.sweeps for layer in layers if layer.sweeps is not None]
    if known:
        yield (
            f"alternating least squares ended after {sum(known) / len(known):.0f} sweeps on average, "
            f"{max(known)} at most"
        )
