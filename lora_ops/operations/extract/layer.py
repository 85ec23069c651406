"""What extraction does to weights of one shape: their changes as factors, whole, or left out with a reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...adapters.layers import FullLayer, Layer, LoraLayer, ReplacementLayer, low_rank
from ...errors import NonFiniteError
from ...linalg import frobenius, residual_
from ...linalg.noise import Profile, Reading, rounding_profile, sampled_variance
from ...linalg.ranks.standing import standing
from ...linalg.ranks.truncation import truncated
from ...linalg.rounding import is_rounding
from ...linalg.storage import rounded, spelled
from ...models.differences import (
    are_floats,
    change_norm,
    check_finite,
    difference,
    measured,
    measured_difference,
)
from ...models.pairing import Pair
from ...report import LayerReport, Rounding, Skip, Weighted
from ...run.devices import Placement, download, upload
from ...run.job import Outcome
from ...run.scratch import SCRATCH, Scratch
from .formed import Formed, formed
from .kinds.table import LORA
from .plan import NO_FACTORS, Plan
from .rounding import rounding_of_cut, rounding_of_reading
from .weighed import weighed

UNCHANGED = "unchanged"
ROUNDING = "only storage rounding differs"
BELOW = "nothing stands above storage rounding"
NO_FLOATS = "integers"
EXCLUDED = "excluded"


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What is known of the difference of a weight.

    Attributes:
        pair: Which weight.
        norm: Its Frobenius norm, float64, on the device.
        same: Whether no number moved further than storage moves it.
        variance: Of its rounding, from a sample; None where nobody asks.
        profile: Of its rounding, where the rule is `noise`.
    """

    pair: Pair
    norm: Tensor
    same: bool = False
    variance: float | None = None
    profile: Profile | None = None


def factor_batch(
    plan: Plan, pairs: Sequence[Pair], placement: Placement, exact: bool, seed: int
) -> list[Outcome[Layer]]:
    """Extract layers of one shape together.

    A device is waited for at each answer that it gives, so that they are asked for all layers at once.

    Args:
        plan: What is extracted.
        pairs: Which layers.
        placement: Where to compute.
        exact: Compute exact truncations.
        seed: Of the random start.
    """
    with SCRATCH.frame():
        return _batch(plan, pairs, placement, exact, seed)


def _batch(
    plan: Plan, pairs: Sequence[Pair], placement: Placement, exact: bool, seed: int
) -> list[Outcome[Layer]]:
    # Of a batch all differences would stay in memory beside the stack of them.
    scratch = SCRATCH if len(pairs) == 1 else None
    read = read_changes(plan, pairs, placement, scratch)
    outcomes: dict[str, Outcome[Layer]] = {}
    changed: list[tuple[Change, float]] = []
    deltas: list[Tensor] = []
    for one, delta, norm in read:
        both = one.pair
        if norm == 0 or one.same:
            outcomes[both.target] = skipped(both, ROUNDING if norm else UNCHANGED, norm)
        elif one.profile is not None:
            reading = standing(delta, one.profile, plan.rule_for(both), exact=exact, seed=seed)
            outcomes[both.target] = _denoised(plan, both, delta, norm, reading, exact, seed)
        elif (moment := plan.moment(both)) is not None:
            made = weighed(plan, both, delta, moment, exact, seed)
            outcomes[both.target] = _written(both, made, norm)
        elif plan.form_for(both) is not LORA:
            made = formed(plan, both, delta, None, exact, seed)
            outcomes[both.target] = _written(both, made, norm)
        else:
            changed.append((one, norm))
            deltas.append(delta)
    read.clear()
    if changed:
        stack = deltas[0].unsqueeze(0) if len(deltas) == 1 else torch.stack(deltas)
        deltas.clear()  # the device holds them once
        outcomes.update(_cut(plan, changed, stack, exact, seed))
    return [_smaller(plan, both, outcomes[both.target]) for both in pairs]


def read_changes(
    plan: Plan, pairs: Sequence[Pair], placement: Placement, scratch: Scratch | None = None
) -> list[tuple[Change, Tensor, float]]:
    """Form the differences of weights, (out, in * kernel) in float32, each with its norm.

    The device is asked once, for all norms.

    Args:
        plan: What is extracted.
        pairs: Which weights.
        placement: Where to compute.
        scratch: Of which the differences may be, where they are computed with on the CPU.

    Raises:
        NonFiniteError: NaN or infinity in a weight.
    """
    read = [_read(plan, both, placement, scratch) for both in pairs]
    norms: list[float] = torch.stack([one.norm for one, _ in read]).tolist()
    for both, norm in zip(pairs, norms, strict=True):
        if not math.isfinite(norm):
            check_finite(plan.sides, both, *plan.sides.read(both))
    return [(one, delta, norm) for (one, delta), norm in zip(read, norms, strict=True)]


def _read(
    plan: Plan, both: Pair, placement: Placement, scratch: Scratch | None
) -> tuple[Change, Tensor]:
    """Form one difference; nothing is asked of the device."""
    base, tuned = plan.sides.read(both)
    profile = variance = None
    same = False
    # The rule `noise` tells change from rounding by all numbers together, where each may be either.
    if plan.rule_for(both).is_noise:
        profile = rounding_profile(base, tuned, plan.sides.grids(both))
    else:
        same = base.dtype == tuned.dtype and torch.equal(base, tuned)
        same = same or is_rounding(base, tuned, plan.sides.reaches(both))
        if not same and plan.sides.coarse(both) is not None:
            variance = sampled_variance(base, tuned, plan.sides.grids(both))
    old, new = upload(base, placement), upload(tuned, placement)
    into = new if plan.sides.is_free(both) else None
    if into is None and scratch is not None and new.device.type == "cpu":
        into = scratch.take(new.shape, torch.float32)
    delta = difference(old, new, into).flatten(1)
    return Change(both, frobenius(delta), same, variance, profile), delta


def _cut(
    plan: Plan, changed: Sequence[tuple[Change, float]], stack: Tensor, exact: bool, seed: int
) -> Iterator[tuple[str, Outcome[Layer]]]:
    """Cut differences, of which the norms are known, to their ranks; `stack` is overwritten."""
    totals = torch.stack([one.norm for one, _ in changed]).square()
    rule = plan.rule_for(changed[0][0].pair)
    svds = truncated(stack, totals, rule, exact=exact, seed=seed)
    made = _layers(plan, [one.pair for one, _ in changed], [svd.factors() for svd in svds], stack)
    for (one, norm), svd, (layer, residual) in zip(changed, svds, made, strict=True):
        known = rounding_of_cut(svd, norm, one.variance, one.pair.matrix)
        search = None if not svd.search or svd.search[0] is None else spelled(svd.search[0])
        yield one.pair.target, written(one.pair, layer, norm, residual, known, search=search)


def _denoised(
    plan: Plan, both: Pair, delta: Tensor, norm: float, reading: Reading, exact: bool, seed: int
) -> Outcome[Layer]:
    """What stands above the rounding of storage; `delta` is overwritten."""
    if reading.best is None:
        return skipped(both, BELOW, norm)
    if plan.form_for(both) is not LORA:
        return _written(both, formed(plan, both, delta, reading, exact, seed), norm)
    rank = max(1, min(plan.most_ranks(both), int((reading.best.s > 0).sum())))
    ((layer, residual),) = _layers(plan, [both], [reading.best.factors(rank)], delta[None])
    search = None if reading.search is None else spelled(reading.search)
    return written(both, layer, norm, residual, rounding_of_reading(reading, layer), search=search)


def _layers(
    plan: Plan, pairs: Sequence[Pair], factors: Sequence[tuple[Tensor, Tensor]], stack: Tensor
) -> Iterator[tuple[LoraLayer, float]]:
    """Layers of rounded factors, with alpha the rank, and what each misses of its difference.

    Args:
        plan: What is extracted.
        pairs: Of which weights.
        factors: Up and down of each, float32, on the device.
        stack: (n, out, in), the differences; overwritten.
    """
    stored = [(up.to(plan.dtype), down.to(plan.dtype)) for up, down in factors]
    residuals = torch.stack(
        [
            residual_(delta, up.float(), down.float())
            for delta, (up, down) in zip(stack, stored, strict=True)
        ]
    )
    here = iter(download([one for both in stored for one in both]))
    for both, exact, residual in zip(pairs, factors, residuals.tolist(), strict=True):
        up, down = (rounded(next(here), plan.dtype, both.target, was) for was in exact)
        yield low_rank(up, down, both.shape, alpha=float(down.shape[0])), residual


def _smaller(plan: Plan, both: Pair, outcome: Outcome[Layer]) -> Outcome[Layer]:
    """The layer, or the difference itself where that is asked for and takes no more numbers."""
    if not plan.auto_full or outcome.value is None:
        return outcome
    held = sum(one.numel() for one in outcome.value.stored_numbers().values())
    return keep_whole(plan, both) if held >= math.prod(both.shape) else outcome


def keep_whole(plan: Plan, both: Pair) -> Outcome[Layer]:
    """A parameter without factors, as a full difference."""
    if not are_floats(plan.sides, both):
        return leave_out(plan, both, NO_FACTORS)
    delta, norm = measured_difference(plan.sides, both)
    if norm == 0:
        return skipped(both, UNCHANGED, norm)
    layer = FullLayer(rounded(delta, plan.dtype, both.target))
    residual = float(frobenius((delta - layer.diff.float()).reshape(1, -1)))
    return written(both, layer, norm, residual)


def replaced(plan: Plan, both: Pair, *, always: bool = False) -> Outcome[Layer]:
    """A parameter as the tuned side has it, not as a difference.

    Args:
        plan: What is extracted.
        both: Which.
        always: Whether it is kept where it is the base's, too.
    """
    base, tuned = plan.sides.read(both)
    _, norm = measured(plan.sides, both, base, tuned)
    if norm == 0 and not always:
        return skipped(both, UNCHANGED, norm)
    layer = ReplacementLayer(rounded(tuned, plan.dtype, both.target))
    missed = (layer.set_weight.double() - tuned.double()).reshape(1, -1)
    return written(both, layer, norm, float(frobenius(missed)))


def leave_out(plan: Plan, both: Pair, reason: str) -> Outcome[Layer]:
    """A parameter that is not in the result, with the size of what is lost."""
    if not are_floats(plan.sides, both):
        same = torch.equal(*plan.sides.read(both))
        return skipped(both, UNCHANGED if same else NO_FLOATS, 0.0)
    try:
        norm = change_norm(plan.sides, both)
    except NonFiniteError:
        if reason != EXCLUDED:
            raise
        return skipped(both, reason, 0.0)  # excluded because it is damaged: it has no norm
    return skipped(both, reason if norm else UNCHANGED, norm)


def skipped(both: Pair, reason: str, norm: float) -> Outcome[Layer]:
    """What becomes of a weight that is not in the result."""
    skip = Skip(both.target, both.component, both.kind, reason, norm)
    return Outcome(both.target, None, (skip,))


def _written(both: Pair, made: Formed, norm: float) -> Outcome[Layer]:
    """What becomes of a weight that was approximated alone."""
    told = (made.rounding, made.sweeps, None, made.weighted)
    return written(both, made.layer, norm, made.residual, *told)


def written(
    both: Pair,
    layer: Layer,
    norm: float,
    residual: float,
    known: Rounding | None = None,
    sweeps: int | None = None,
    search: str | None = None,
    weighted: Weighted | None = None,
) -> Outcome[Layer]:
    """What becomes of a weight that is."""
    report = LayerReport(
        *(both.target, both.component, both.kind, both.shape, layer.rank, norm, residual),
        rounding=known,
        sweeps=sweeps,
        search=search,
        weighted=weighted,
    )
    return Outcome(both.target, layer, (report,))
