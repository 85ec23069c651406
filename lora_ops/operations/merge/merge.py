"""Merge: checkpoints and adapters by any method, in float32, rounded once, whatever the recipe.

A merge is also a checkpoint: `MergedSource` computes each tensor when it is asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from ...adapters.layers import Convention
from ...adapters.strengths.blocks import locate
from ...elements import Element
from ...errors import NonFiniteError
from ...models.pairing import parameter_kind
from ...report import LayerReport, Report, Skip, counted
from ...run.devices import Placement, place
from ...run.job import Outcome, Work
from ...run.stream import stream
from ...run.workers import Progress
from ...source import TensorSource
from ..weights.step import Put
from ..weights.storing import stored_layers, storing_notes
from ..weights.survival import CHANCE, survival_notes
from ..weights.tiles import Planned, compute, computed
from ..weights.written import put_unchanged, tensor_jobs, written
from .plan import MergePlan, plan_merge, too_deep
from .recipes.recipe import Recipe
from .record import MergeRecord
from .step import MergedLayer

if TYPE_CHECKING:
    from typing_extensions import Unpack

NOT_FINITE = "not finite in some model: the base's is kept"


class MergeOptions(TypedDict, total=False):
    """What a merge can be told beside its recipe; see `plan_merge`."""

    components: Sequence[str]
    strict: bool
    allow_nonfinite: bool
    allow_partial: bool
    dora: Convention | None


@dataclass(frozen=True, slots=True)
class MergeReport(Report):
    """What a merge did.

    Attributes:
        merged: How many parameters were computed.
        taken: How many tensors are another model's, as they are.
        copied: How many tensors stayed the base's.
        only_base: Parameters that only the base has.
        only_others: Parameters that only others have, by their file.
        sizes: Norm of the change as a share of the base's, by component.
        blocks: The same by block, for models whose blocks are known.
        measured: Share of the merged numbers that change, gain and cosine were measured on: of large
            weights some rows of each.
    """

    merged: int = 0
    taken: int = 0
    copied: int = 0
    only_base: tuple[str, ...] = ()
    only_others: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    sizes: Mapping[str, float] = field(default_factory=dict[str, float])
    blocks: Mapping[str, float] = field(default_factory=dict[str, float])
    measured: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: as any report, and what is in it of the models."""
        return {
            **Report.to_dict(self),
            "merged": self.merged,
            "taken": self.taken,
            "copied": self.copied,
            "only_base": list(self.only_base),
            "only_others": {name: list(names) for name, names in self.only_others.items()},
            "sizes": dict(self.sizes),
            "blocks": dict(self.blocks),
            "measured": self.measured,
        }


def merge(
    recipe: Recipe,
    sources: Mapping[str, TensorSource],
    *,
    progress: Progress | None = None,
    **options: Unpack[MergeOptions],
) -> tuple[dict[str, Tensor], MergeReport]:
    """Return the checkpoint that a recipe gives, all in memory, and the report.

    Args:
        recipe: Which files, in which steps; `parse_line("A + 0.3*(B - C)")` reads one.
        sources: The files by the recipe's names; a dict of tensors as `DictSource(tensors)`.
        progress: Called after each tensor.
        **options: See `plan_merge`.

    Raises:
        LoraOpsError: See `plan_merge`; NaN or infinity in what is added up, or out of range.
    """
    started = time.perf_counter()
    tensors, report = run_merge(plan_merge(recipe, sources, **options), progress)
    return tensors, replace(report, seconds=time.perf_counter() - started)


def run_merge(
    plan: MergePlan, progress: Progress | None = None
) -> tuple[dict[str, Tensor], MergeReport]:
    """Return the checkpoint of a plan, all in memory, and the report; see `merge`.

    Args:
        plan: From `plan_merge`.
        progress: Called after each tensor.
    """
    started = time.perf_counter()
    look_over(plan, progress)
    work = Work(tensor_jobs(plan.tensors), partial(_compute, plan))
    outcomes = list(stream(work, place("cpu"), ahead=3, progress=progress))
    report = summarise_merge(plan, (one for outcome in outcomes for one in outcome.reports))
    report = replace(report, seconds=time.perf_counter() - started)
    return {one.name: one.value for one in outcomes if one.value is not None}, report


def look_over(plan: MergePlan, progress: Progress | None = None) -> None:
    """Read the models for those steps that look at all of them first; else that is done when it is needed.

    Args:
        plan: From `plan_merge`.
        progress: Called after each weight of such a pass.
    """
    for survey in plan.surveys:
        try:
            survey(progress)
        except RecursionError:
            raise too_deep(plan.recipe) from None


def _compute(plan: MergePlan, keys: Sequence[str], _: Placement) -> list[Outcome[Tensor]]:
    return [Outcome(key, *merged_tensor(plan, key)) for key in keys]


def merged_tensor(plan: MergePlan, key: str) -> tuple[Tensor, tuple[LayerReport | Skip, ...]]:
    """Compute one tensor of the result, and what is to be said of it.

    Raises:
        NonFiniteError: NaN or infinity in what is added up, or out of the range of the dtype.
    """
    planned = plan.tensors[key]
    try:
        return computed(planned)
    except RecursionError:
        raise too_deep(plan.recipe) from None
    except NonFiniteError:
        if not plan.allow_nonfinite:
            raise
        tensor, _ = computed(without_steps(planned))
        return tensor, tuple(_kept(planned))


def merge_into(plan: MergePlan, planned: Planned, put: Put) -> tuple[LayerReport | Skip, ...]:
    """Compute one tensor of the result piece by piece; see `merged_tensor`."""
    try:
        return compute(planned, put)
    except RecursionError:
        raise too_deep(plan.recipe) from None
    except NonFiniteError:
        if not plan.allow_nonfinite:
            raise
        put_unchanged(planned, put)
        return tuple(_kept(planned))


def written_tensors(plan: MergePlan, key: str) -> dict[str, Tensor]:
    """What a file of the result holds of one tensor, by key; see `merged_tensor`.

    Args:
        plan: From `stored_plan`.
        key: Of the tensor.
    """
    planned = plan.tensors[key]
    if planned.storing is None:
        return {key: merged_tensor(plan, key)[0]}
    return written(planned, partial(merge_into, plan))


def without_steps(planned: Planned) -> Planned:
    """The tensor as the base has it."""
    return replace(planned, steps=(), seed=None)


def _kept(planned: Planned) -> Iterator[Skip]:
    for step in planned.steps:
        one = step.parameter
        yield Skip(one.target, one.component, parameter_kind(one), NOT_FINITE, 0.0)


def summarise_merge(plan: MergePlan, reports: Iterable[LayerReport | Skip]) -> MergeReport:
    """Return the report: sizes of the change, and notes where rounding ate it or nothing changed.

    Args:
        plan: From `plan_merge`.
        reports: Those of all tensors.
    """
    known = list(reports)
    layers = tuple(one for one in known if isinstance(one, MergedLayer))
    skips = tuple(one for one in known if isinstance(one, Skip))
    skips += plan.gguf.skips if plan.gguf else ()
    stored = stored_layers(known)
    located = locate([layer.target for layer in layers]) if layers else None
    blocks: dict[str, float] = {}
    if located is not None:
        for block, names in located.modules.items():
            blocks[block.label] = _size([layer for layer in layers if layer.target in names])
    components = dict.fromkeys(layer.component for layer in layers)
    return MergeReport(
        layers,
        skips,
        (*plan.notes, *storing_notes(stored), *_notes(plan, layers, skips)),
        stored=stored,
        merged=len(plan.merged) - plan.taken,
        taken=plan.taken,
        copied=len(plan.copied),
        only_base=plan.only_base,
        only_others=plan.only_others,
        sizes={
            one: _size([layer for layer in layers if layer.component == one]) for one in components
        },
        blocks=blocks,
        measured=_measured(layers),
    )


def _size(layers: Sequence[MergedLayer]) -> float:
    """Norm of the change over that of the base's weights, of several together."""
    change = math.hypot(*(layer.norm for layer in layers))
    base = math.hypot(*(layer.norm / layer.size for layer in layers if layer.size))
    return change / base if base else 0.0


def _measured(layers: Sequence[MergedLayer]) -> float:
    """Share of all numbers that were measured."""
    counts = [math.prod(layer.shape) for layer in layers]
    seen = math.fsum(layer.measured * n for layer, n in zip(layers, counts, strict=True))
    return seen / sum(counts) if sum(counts) else 1.0


def _notes(plan: MergePlan, layers: Sequence[MergedLayer], skips: Sequence[Skip]) -> Iterator[str]:
    if not plan.taken and not any(layer.cosine for layer in layers):
        yield (
            f"changes nothing: all {counted(len(plan.merged), 'parameter')} are those of "
            f"{plan.base.name}; are two of the files one, or all weights 0?"
        )
    yield from survival_notes(
        layers,
        plan.tensors.values(),
        by_chance=plan.recipe.output.rounding == "stochastic",
        wider="write a wider dtype",
        ways=("merge all steps in one recipe", "keep the change as a LoRA", CHANCE),
    )
    kept = [skip for skip in skips if skip.reason == NOT_FINITE]
    if kept:
        yield f"{counted(len(kept), 'parameter')} {NOT_FINITE}, the first `{kept[0].target}`"


class MergedSource(TensorSource):
    """A merge as a checkpoint: a tensor is computed when it is asked for, each time anew.

    The file of a LoRA that is extracted from it has the recipe, as that of a merged model has.

    Args:
        plan: From `plan_merge`.
        recipe: What the file shall say was asked for; None: what the plan says.
    """

    def __init__(self, plan: MergePlan, recipe: Recipe | None = None) -> None:
        self.plan = plan
        self.record = MergeRecord(plan, recipe or plan.recipe)
        self.name = plan.recipe.title or f"merge on {plan.base.name}"
        self.metadata = plan.base.metadata

    def keys(self) -> Sequence[str]:
        """Those of the result, in the base's order."""
        return list(self.plan.tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.plan.tensors[key].shape

    def dtype(self, key: str) -> torch.dtype:
        """Dtype that one tensor is rounded to."""
        return self.element(key).dtype

    def element(self, key: str) -> Element:
        """What its numbers are."""
        return self.plan.tensors[key].element

    def result_element(self, key: str) -> Element:
        """The same."""
        return self.element(key)

    def tensor(self, key: str) -> Tensor:
        """Compute one tensor."""
        return merged_tensor(self.plan, key)[0]
