"""Extraction: from two checkpoints to the low-rank change that turns one into the other."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...adapters.adapter import Adapter
from ...adapters.layers import FullLayer, Layer, LoraLayer, low_rank
from ...errors import MismatchError, NonFiniteError
from ...linalg import frobenius, residual_
from ...linalg.noise import Reading, rounding_profile, sampled_variance
from ...linalg.ranks.rules import RankRule
from ...linalg.ranks.standing import standing
from ...linalg.ranks.truncation import truncated
from ...linalg.rounding import is_rounding
from ...linalg.storage import rounded
from ...models.differences import (
    are_floats,
    change_norm,
    check_finite,
    difference,
    measured_difference,
)
from ...models.pairing import Pair
from ...report import LayerReport, Report, Rounding, Skip, counted
from ...run.devices import Placement, place, upload
from ...run.job import Job, Outcome, Work
from ...run.stream import stream
from ...run.workers import Progress
from ...source import TensorSource
from ..reasons import RANK_ZERO
from .plan import Plan, PlanOptions, plan_extraction
from .rounding import rounding_notes, rounding_of_cut, rounding_of_reading

if TYPE_CHECKING:
    from typing_extensions import Unpack

UNCHANGED = "unchanged"
ROUNDING = "only storage rounding differs"
BELOW = "nothing stands above storage rounding"
NO_FACTORS = "no low-rank form (`full_differences=True` keeps it)"
NO_FLOATS = "integers"
EXCLUDED = "excluded"


def extract(
    base: TensorSource,
    tuned: TensorSource,
    rule: str | int | RankRule | None = None,
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
        rule: How many directions a layer gets; see `ranks`, and `plan_extraction` for None.
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
    work = extraction_work(plan, exact=exact, seed=seed)
    outcomes = list(stream(work, place(device), progress=progress))
    layers = {outcome.name: outcome.value for outcome in outcomes if outcome.value}
    report = summarise(plan, (outcome.report for outcome in outcomes))
    return Adapter(layers, {}, {}, "comfy"), replace(report, seconds=time.perf_counter() - started)


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


def extraction_work(
    plan: Plan, *, exact: bool = False, seed: int = 0
) -> Work[Task, Outcome[Layer]]:
    """Return the jobs of an extraction, and how they are done.

    Args:
        plan: From `plan_extraction`.
        exact: Compute the exact truncation.
        seed: Seed of the random start. A layer's result depends on the seed and the layer only.
    """
    pairing = plan.pairing
    left_out = NO_FACTORS if not plan.full_differences else None
    tasks = [
        *(Task(both, True) for both in pairing.candidates if not plan.is_left_out(both)),
        *(Task(both, reason=left_out) for both in pairing.rest),
        *(Task(both, reason=RANK_ZERO) for both in pairing.candidates if plan.is_left_out(both)),
        *(Task(both, reason=EXCLUDED) for both in pairing.excluded),
    ]
    return Work([_job(plan, task) for task in tasks], partial(_compute, plan, exact, seed))


def _job(plan: Plan, task: Task) -> Job[Task]:
    both = task.pair
    if not task.has_factors:
        return Job(both.target, task, math.prod(both.shape), alike=both.target)
    # Batches are of layers of one shape, kernel included, as kernels may have a rule of their own.
    return Job(both.target, task, math.prod(both.shape), plan.working_set(both), both.shape)


def _compute(
    plan: Plan, exact: bool, seed: int, tasks: Sequence[Task], placement: Placement
) -> list[Outcome[Layer]]:
    if all(task.has_factors for task in tasks):
        return _factor_batch(plan, [task.pair for task in tasks], placement, exact, seed)
    return [
        _keep_whole(plan, task.pair)
        if task.reason is None
        else _leave_out(plan, task.pair, task.reason)
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
    return Report(layers, skips, tuple(_notes(plan, layers)))


def _notes(plan: Plan, layers: Sequence[LayerReport]) -> Iterator[str]:
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
    for rule, kernel in ((plan.rule, False), (plan.rule.conv, True)):
        if rule is None or rule.kind != "rank":
            continue
        lowered = sum(
            layer.rank < rule.value and plan.rule.for_kernel(layer.shape[2:]) is rule
            for layer in layers
        )
        if lowered:
            conv = "conv " if kernel else ""
            layers_ = counted(lowered, "layer")
            yield f"{conv}rank {rule.value:g} lowered in {layers_}: the change has no more"


def _factor_batch(
    plan: Plan, pairs: Sequence[Pair], placement: Placement, exact: bool, seed: int
) -> list[Outcome[Layer]]:
    """Extract layers of one shape together."""
    outcomes: dict[str, Outcome[Layer]] = {}
    changed: list[Pair] = []
    deltas: list[Tensor] = []
    measured: list[Tensor] = []
    variances: list[float | None] = []
    rule = plan.rule_for(pairs[0])
    for both in pairs:
        base, tuned = plan.sides.read(both)
        delta = difference(upload(base, placement), upload(tuned, placement)).flatten(1)
        norm_of_delta = frobenius(delta)
        norm = float(norm_of_delta)
        if not math.isfinite(norm):
            check_finite(plan.sides, both, base, tuned)
        # The rule `noise` tells change from rounding by all numbers together, where each may be either.
        if norm == 0 or (not rule.is_noise and is_rounding(base, tuned, plan.sides.reaches(both))):
            outcomes[both.target] = _skip(both, ROUNDING if norm else UNCHANGED, norm)
            continue
        if rule.is_noise:
            profile = rounding_profile(base, tuned, plan.sides.grids(both))
            reading = standing(delta, profile, rule, exact=exact, seed=seed)
            outcomes[both.target] = _denoised(plan, both, delta, norm, reading)
            continue
        coarse = plan.sides.coarse(both) is not None
        variances.append(sampled_variance(base, tuned, plan.sides.grids(both)) if coarse else None)
        changed.append(both)
        deltas.append(delta)
        measured.append(norm_of_delta)
    if changed:
        stack = deltas[0].unsqueeze(0) if len(deltas) == 1 else torch.stack(deltas)
        deltas.clear()
        norms = torch.stack(measured)
        svds = truncated(stack, norms.square(), rule, exact=exact, seed=seed)
        for index, (both, svd) in enumerate(zip(changed, svds, strict=True)):
            layer = _lora_layer(both, svd.factors(), plan.dtype)
            norm, residual = float(norms[index]), _residual(stack[index], layer)
            known = rounding_of_cut(svd, norm, variances[index], both.matrix)
            outcomes[both.target] = _written(both, layer, norm, residual, known)
    return [outcomes[both.target] for both in pairs]


def _denoised(
    plan: Plan, both: Pair, delta: Tensor, norm: float, reading: Reading
) -> Outcome[Layer]:
    """What stands above the rounding of storage; `delta` is overwritten."""
    if reading.best is None:
        return _skip(both, BELOW, norm)
    rank = max(1, min(plan.most_ranks(both), int((reading.best.s > 0).sum())))
    layer = _lora_layer(both, reading.best.factors(rank), plan.dtype)
    known = rounding_of_reading(reading, layer)
    return _written(both, layer, norm, _residual(delta, layer), known)


def _residual(delta: Tensor, layer: LoraLayer) -> float:
    """Frobenius norm of what a layer misses of the difference, which is overwritten."""
    up, down = (factor.flatten(1).float().to(delta.device) for factor in (layer.up, layer.down))
    return float(residual_(delta, up, down))


def _lora_layer(both: Pair, factors: tuple[Tensor, Tensor], dtype: torch.dtype) -> LoraLayer:
    """Rounded factors in the weight's own form; alpha is the rank."""
    up, down = (rounded(factor, dtype, both.target) for factor in factors)
    return low_rank(up, down, both.shape, alpha=float(down.shape[0]))


def _keep_whole(plan: Plan, both: Pair) -> Outcome[Layer]:
    """A parameter without factors, as a full difference."""
    if not are_floats(plan.sides, both):
        return _leave_out(plan, both, NO_FACTORS)
    delta, norm = measured_difference(plan.sides, both)
    if norm == 0:
        return _skip(both, UNCHANGED, norm)
    layer = FullLayer(rounded(delta, plan.dtype, both.target))
    residual = float(frobenius((delta - layer.diff.float()).reshape(1, -1)))
    return _written(both, layer, norm, residual)


def _leave_out(plan: Plan, both: Pair, reason: str) -> Outcome[Layer]:
    """A parameter that is not in the result, with the size of what is lost."""
    if not are_floats(plan.sides, both):
        same = torch.equal(*plan.sides.read(both))
        return _skip(both, UNCHANGED if same else NO_FLOATS, 0.0)
    try:
        norm = change_norm(plan.sides, both)
    except NonFiniteError:
        if reason != EXCLUDED:
            raise
        return _skip(both, reason, 0.0)  # excluded because it is damaged: it has no norm
    return _skip(both, reason if norm else UNCHANGED, norm)


def _skip(both: Pair, reason: str, norm: float) -> Outcome[Layer]:
    skip = Skip(both.target, both.component, both.kind, reason, norm)
    return Outcome(both.target, None, (skip,))


def _written(
    both: Pair, layer: Layer, norm: float, residual: float, known: Rounding | None = None
) -> Outcome[Layer]:
    about = (both.target, both.component, both.kind, both.shape)
    report = LayerReport(*about, layer.rank, norm, residual, rounding=known)
    return Outcome(both.target, layer, (report,))
