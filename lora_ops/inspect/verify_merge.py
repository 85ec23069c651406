"""Verification of a merge: whether a file is what its recipe gives, number by number."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..operations.merge.merge import MergedSource, MergeOptions
from ..operations.merge.plan import plan_merge
from ..operations.merge.recipes.recipe import Recipe
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
    right = MergedSource(plan_merge(recipe, sources, **options))
    held, wanted = set(merged.keys()), right.plan.tensors
    jobs = [Job(key, key, math.prod(one.shape)) for key, one in wanted.items() if key in held]
    with unchanged(merged, *sources.values()):
        work = Work(jobs, partial(_compared, right, merged))
        found = stream(work, place("cpu"), ahead=3, progress=progress)
        different = {key: off for key, off in found if off is not None}
    return MergeCheck(
        len(jobs) - len(different),
        different,
        missing=tuple(key for key in wanted if key not in held),
        added=tuple(key for key in merged.keys() if key not in wanted),  # noqa: SIM118
        notes=right.plan.notes,
        seconds=time.perf_counter() - started,
    )


def _compared(
    right: MergedSource, merged: TensorSource, keys: Sequence[str], _: Placement
) -> list[tuple[str, float | None]]:
    return [(key, _difference(right.tensor(key), merged, key)) for key in keys]


def _difference(right: Tensor, merged: TensorSource, key: str) -> float | None:
    """The share by which a tensor is off; None where every bit is the same."""
    if (merged.shape(key), merged.dtype(key)) != (tuple(right.shape), right.dtype):
        return math.inf
    found = merged.tensor(key)
    if torch.equal(found.flatten().view(torch.uint8), right.flatten().view(torch.uint8)):
        return None
    norm = float(right.double().norm())
    off = float((found.double() - right.double()).norm()) / (norm or 1.0)
    return off if math.isfinite(off) else math.inf
