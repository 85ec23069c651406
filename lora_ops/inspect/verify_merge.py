"""Verification of a merge: whether a file is what its recipe gives, number by number."""

from __future__ import annotations

import math
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..files import GgufFile, QuantisedSource
from ..operations.merge.merge import MergeOptions, written_tensors
from ..operations.merge.plan import MergePlan, plan_merge
from ..operations.merge.recipes.recipe import Recipe
from ..operations.merge.stored import stored_plan
from ..operations.weights.output import rows_of
from ..run.devices import Placement, place
from ..run.inputs import unchanged
from ..run.job import Job, Work
from ..run.stream import stream
from ..run.workers import Progress
from ..source import TensorSource

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """How a file compares with what a recipe gives.

    Attributes:
        equal: How many tensors are the same, bit for bit.
        different: Norm of the difference as a share of the recipe's norm, by the key of a tensor
            that is not the same; infinite where shape or dtype is another.
        missing: Keys that the recipe gives and the file lacks.
        added: Keys that the file has beside them.
        notes: What is worth a sentence of the recipe's run.
        seconds: Wall time.
    """

    equal: int
    different: Mapping[str, float]
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def is_same(self) -> bool:
        """Whether the file is what the recipe gives."""
        return not self.different and not self.missing and not self.added

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"same": self.is_same, **asdict(self)}


def verify_merge(
    recipe: Recipe,
    sources: Mapping[str, TensorSource],
    merged: TensorSource,
    *,
    progress: Progress | None = None,
    **options: Unpack[MergeOptions],
) -> MergeCheck:
    """Compute a merge again, and compare each tensor with that of a file; nothing is written.

    Args:
        recipe: With numbers for all names, as `open_recipe` reads it from the file.
        sources: Its files by the recipe's names.
        merged: The checkpoint that is to be what the recipe gives.
        progress: Called after each tensor.
        **options: See `plan_merge`; those that it was merged with.

    Raises:
        ArgumentError: The recipe is of a LoRA.
        FormatError: A file changed while it was read.
        LoraOpsError: See `plan_merge`; NaN or infinity in what is added up, or out of range.
    """
    started = time.perf_counter()
    if recipe.output.kind == "lora":
        raise ArgumentError(
            f"{merged.name} is a LoRA of a merge, and only models are held against their recipe; make it "
            "again from its recipe, and compare the two"
        )
    stored = merged.original if isinstance(merged, QuantisedSource) else merged
    output = Path(merged.name) if isinstance(stored, GgufFile) else None
    plan = stored_plan(plan_merge(recipe, sources, **options), output)
    held = list(stored.keys())
    wanted = [_name(plan, key, held) for key, _, _ in rows_of(plan.tensors.values())]
    jobs = [Job(key, key, math.prod(one.shape)) for key, one in plan.tensors.items()]
    with unchanged(merged, *sources.values()):
        work = Work(jobs, partial(_compared, plan, stored, frozenset(held)))
        found = list(stream(work, place("cpu"), ahead=3, progress=progress))
    different = {key: off for outcome in found for key, off in outcome.items() if off is not None}
    return MergeCheck(
        len({*wanted} & {*held}) - len(different),
        different,
        missing=tuple(key for key in wanted if key not in {*held}),
        added=tuple(key for key in held if key not in {*wanted}),
        notes=plan.notes,
        seconds=time.perf_counter() - started,
    )


def _compared(
    plan: MergePlan,
    stored: TensorSource,
    held: Container[str],
    keys: Sequence[str],
    _: Placement,
) -> list[dict[str, float | None]]:
    """How far what the file holds is off, for each tensor of the plan; one that it lacks is not computed."""
    found: list[dict[str, float | None]] = []
    for key in keys:
        names = {k: _name(plan, k, held) for k, _, _ in rows_of([plan.tensors[key]])}
        is_held = any(name in held for name in names.values())
        right = written_tensors(plan, key) if is_held else {}
        there = {names[k]: one for k, one in right.items() if names[k] in held}
        found.append({name: _difference(one, stored, name) for name, one in there.items()})
    return found


def _name(plan: MergePlan, key: str, held: Container[str]) -> str:
    """What a tensor is called in the file: in a GGUF file without what stands before a model's names."""
    if plan.gguf is None or key in held:
        return key
    return plan.gguf.layout.tensors[key].name


def _difference(right: Tensor, merged: TensorSource, key: str) -> float | None:
    """The share by which a tensor is off; None where every bit is the same."""
    if isinstance(merged, GgufFile) and right.numel() == math.prod(merged.shape(key)):
        right = right.reshape(merged.shape(key))  # blocks lie in rows of the file's own
    if (merged.shape(key), merged.dtype(key)) != (tuple(right.shape), right.dtype):
        return math.inf
    found = merged.tensor(key)
    if torch.equal(found.flatten().view(torch.uint8), right.flatten().view(torch.uint8)):
        return None
    norm = float(right.double().norm())
    off = float((found.double() - right.double()).norm()) / (norm or 1.0)
    return off if math.isfinite(off) else math.inf
