"""A budget across layers at extraction: the leading singular values of all changes first, then the ranks.

Of values that nobody buys no more has to be known than that they are smaller than the last one that is known. So
a first pass over the files takes so many of each weight as the budget is likely to want; weights that get as
many ranks as values are known of them are looked at again, for twice as many, until none does. What is kept
of a weight meanwhile is its values. The layers are made by a last pass, as by a rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch

from ...errors import LoraOpsError
from ...linalg import inverse_norm, spectrum, truncated_svd
from ...linalg.ranks.budgets import Budget, LayerSpectrum, check_reach, spend
from ...models.pairing import Pair
from ...run.devices import Placement, place
from ...run.job import Job, Work
from ...run.stream import stream
from ...run.workers import Progress
from .layer import Change, read_changes
from .plan import Plan
from .shared import Held, shared, together
from .task import Task, in_order

# Values of a weight that are looked at first, at least.
_FIRST = 32
# What a layer takes in a file beside its factors and its name: alpha.
_ALPHA = 4
# The truncation is within this share of the least error: a bound on the error leaves room for it.
_SLACK = 1e-3

Known: TypeAlias = "tuple[str, LayerSpectrum | None]"


def with_ranks(
    plan: Plan,
    *,
    overhead: int = 0,
    exact: bool = False,
    seed: int = 0,
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> tuple[Plan, Progress | None]:
    """Return the plan of an extraction with the ranks that a budget gives, which takes a pass of its own.

    Args:
        plan: Returned as it is where it has a rule.
        overhead: Bytes of the file that are no factors, for a budget of its size.
        exact: Compute exact truncations.
        seed: Of the random start.
        placement: Where to compute; None: the CPU.
        progress: Called after each parameter.

    Returns:
        The plan; and what is to be told of the progress of its own work.

    Raises:
        ArgumentError: The budget does not reach for anything.
        NonFiniteError: NaN or infinity in a weight.
    """
    if not isinstance(plan.rule, Budget):
        return plan, progress
    plans, held = shared([plan])
    (found,), progress = with_ranks_each(
        plans, held, [overhead], exact=exact, seed=seed, placement=placement, progress=progress
    )
    if isinstance(found, LoraOpsError):
        raise found
    return replace(found, sides=plan.sides), progress


def check_size(plan: Plan, overhead: int) -> None:
    """Refuse a size of the file into which no rank of any weight goes, from headers alone.

    Args:
        plan: With any rule.
        overhead: See `with_ranks`.

    Raises:
        ArgumentError: See `check_reach`.
    """
    if isinstance(plan.rule, Budget) and plan.pairing.candidates:
        least = min(_cost(plan, both) for both in plan.pairing.candidates)
        check_reach(plan.rule, least + _ALPHA, overhead=overhead)


def with_ranks_each(
    plans: Sequence[Plan],
    held: Held,
    overheads: Sequence[int],
    *,
    exact: bool,
    seed: int,
    placement: Placement | None,
    progress: Progress | None,
) -> tuple[list[Plan | LoraOpsError], Progress | None]:
    """Return several plans with ranks; see `with_ranks`.

    Args:
        plans: Which read their base together, or one.
        held: What holds its weights meanwhile.
        overheads: Of each plan.
        exact: See `with_ranks`.
        seed: The same.
        placement: The same.
        progress: The same.
    """
    found: dict[int, Plan | LoraOpsError] = dict(enumerate(plans))
    spendings = {
        number: _Spending(plan, plan.rule, overheads[number], exact, seed)
        for number, plan in enumerate(plans)
        if isinstance(plan.rule, Budget)
    }
    left = sum(_work_left(plans[number]) for number in spendings)
    done = 0
    while spendings:
        numbers = list(spendings)
        work = together([spendings[number].work() for number in numbers], held)
        told = _shifted(progress, done, left)
        for results in stream(work, placement or place("cpu"), progress=told):
            for index, result in results:
                if isinstance(result, LoraOpsError):
                    found[numbers[index]] = result
                    spendings.pop(numbers[index], None)
                elif numbers[index] in spendings:
                    spendings[numbers[index]].take(result)
        done += work.cost
        for number, spending in list(spendings.items()):
            try:
                settled = spending.settled()
            except LoraOpsError as error:
                settled = error
            if settled is not None:
                found[number] = settled
                del spendings[number]
    return [found[number] for number in range(len(plans))], _shifted(progress, done, 0)


def _work_left(plan: Plan) -> int:
    """The cost of the extraction that comes after."""
    pairing = plan.pairing
    pairs = (*pairing.candidates, *pairing.rest, *pairing.excluded)
    return sum(math.prod(both.shape) for both in pairs)


def _shifted(progress: Progress | None, before: int, after: int) -> Progress | None:
    """What tells the progress of a part of the work as that of the whole."""
    if progress is None:
        return None
    return lambda done, total, name: progress(before + done, before + total + after, name)


class _Spending:
    """What is known of the spectra of one extraction, and how much more is wanted."""

    def __init__(self, plan: Plan, budget: Budget, overhead: int, exact: bool, seed: int) -> None:
        self._plan, self._budget, self._overhead = plan, budget, overhead
        self._exact, self._seed = exact, seed
        self._known: dict[str, LayerSpectrum] = {}
        (pairs,) = in_order(plan, plan.pairing.candidates)
        self._pairs = {both.target: both for both in pairs}
        self._wanted = {target: self._first(both) for target, both in self._pairs.items()}

    def work(self) -> Work[Task, Known]:
        """What there is to look at."""
        jobs = [
            Job(
                *(target, Task(self._pairs[target], True), math.prod(self._pairs[target].shape)),
                need=self._plan.working_set(self._pairs[target]),
                alike=(self._pairs[target].shape, count),
            )
            for target, count in self._wanted.items()
        ]
        return Work(jobs, partial(_look, self._plan, self._wanted, self._exact, self._seed))

    def take(self, result: Known) -> None:
        """Remember what was found of a weight."""
        target, found = result
        if found is not None:
            self._known[target] = found

    def settled(self) -> Plan | None:
        """Return the plan with its ranks; None where more has to be known first.

        Raises:
            ArgumentError: The budget does not reach for anything.
        """
        layers = list(self._known.values())
        ranks = spend(self._bound(), layers, overhead=self._overhead) if layers else []
        given = dict(zip(self._known, ranks, strict=True))
        self._wanted = {
            target: min(2 * rank, self._most(self._pairs[target]))
            for target, rank in given.items()
            if rank == len(self._known[target].s) < self._most(self._pairs[target])
        }
        return None if self._wanted else replace(self._plan, ranks=given)

    def _bound(self) -> Budget:
        if self._budget.kind != "total_error" or self._exact:
            return self._budget
        return replace(self._budget, value=self._budget.value * (1 - _SLACK))

    def _most(self, both: Pair) -> int:
        """More than this is of no use."""
        return self._plan.most_ranks(both)

    def _first(self, both: Pair) -> int:
        """How many values to look at first: twice what each weight would get of the budget if all got the same."""
        full = min(both.matrix)
        own = self._budget.rule_for(both.shape[2:])
        if own is not None:  # its kernels do not share in the budget
            return own.first_guess(full) if own.kind == "rank" else full
        mean = 0.0
        if self._budget.kind == "mean":
            mean = self._budget.value
        elif self._budget.kind == "size":
            costs = (_cost(self._plan, one) for one in self._plan.pairing.candidates)
            mean = max(0.0, self._budget.value - self._overhead) / sum(costs)
        return min(self._most(both), max(_FIRST, self._budget.least, math.ceil(2 * mean)))


def _cost(plan: Plan, both: Pair) -> int:
    """Bytes of one rank."""
    return sum(both.matrix) * plan.element.bits // 8


def _look(
    plan: Plan,
    wanted: Mapping[str, int],
    exact: bool,
    seed: int,
    tasks: Sequence[Task],
    placement: Placement,
) -> list[Known]:
    """Return the leading singular values of changes of one shape; None for one that is no change."""
    pairs = [task.pair for task in tasks]
    read = read_changes(plan, pairs, placement)
    changed = [(one, norm) for one, _, norm in read if norm and not one.same]
    deltas = [delta for one, delta, norm in read if norm and not one.same]
    read.clear()
    found: dict[str, LayerSpectrum] = {}
    if changed:
        count = wanted[pairs[0].target]
        values = _values(torch.stack(deltas), changed, count, exact, seed)
        found = {
            one.pair.target: _spectrum(plan, one.pair, norm, s)
            for (one, norm), s in zip(changed, values, strict=True)
        }
    return [(both.target, found.get(both.target)) for both in pairs]


def _values(
    stack: torch.Tensor,
    changed: Sequence[tuple[Change, float]],
    count: int,
    exact: bool,
    seed: int,
) -> Iterator[torch.Tensor]:
    if count == min(stack.shape[-2:]):
        return iter(spectrum(stack).cpu())
    totals = torch.stack([one.norm for one, _ in changed]).square()
    return iter(truncated_svd(stack, count, totals, seed, exact=exact).s.double().cpu())


def _spectrum(plan: Plan, both: Pair, norm: float, s: torch.Tensor) -> LayerSpectrum:
    weight = 1.0
    if plan.relative is not None:
        weight = inverse_norm(plan.sides.read_base(both).float().flatten(1), plan.relative)
    return LayerSpectrum(
        s=s,
        cost=_cost(plan, both),
        fixed=_ALPHA,
        weight=weight,
        kernel=both.shape[2:],
        rest=max(0.0, norm**2 - float(s.square().sum())) if len(s) < min(both.matrix) else 0.0,
    )
