"""Merge from file to file: streamed in, streamed out, complete under its name or not at all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ...errors import ArgumentError
from ...files import FileSource
from ...files.quantised.encoding_gguf import GGUF_TYPES
from ...parts.carry_out import carry_out
from ...parts.whole import Division, Whole
from ...report import Report
from ...run.devices import Placement, place
from ...run.inputs import Input, paths_of
from ...run.job import Outcome, Work
from ...run.packed import by_name
from ...run.workers import Progress
from ...source import TensorSource
from ..weights.checkpoint_file import CheckpointFile
from ..weights.native_file import natively
from ..weights.output import (
    SHARD_SIZE,
    check_place,
    check_shards,
    folder_notes,
    is_folder,
    is_gguf,
    storage_notes,
)
from ..weights.written import tensor_jobs, write_tensor
from .merge import MergeOptions, MergeReport, look_over, merge_into, summarise_merge
from .plan import MergePlan, plan_merge
from .recipes.recipe import Recipe
from .record import MergeRecord
from .step import MergedLayer
from .stored import stored_plan

if TYPE_CHECKING:
    from typing_extensions import Unpack


def plan_merge_file(
    recipe: Recipe,
    sources: Mapping[str, TensorSource],
    *,
    output: Path | None = None,
    force: bool = False,
    shard_size: int = SHARD_SIZE,
    to: str | None = None,
    whole: Sequence[str] = (),
    quantise: Sequence[str] = (),
    **options: Unpack[MergeOptions],
) -> MergePlan:
    """Check everything that can be checked before the work begins, and plan it.

    Args:
        recipe: With numbers for all names; see `Recipe.bind`.
        sources: The files by the recipe's names.
        output: Where the result is to go, `.safetensors`, `.safetensors.index.json` or `.gguf`; a new
            folder where the base is one; None: nowhere yet.
        force: Whether the output may replace files.
        shard_size: See `merge_file`.
        to: The way in which the diffusion model's matrices are written, with scales: `fp8_scaled`; see
            docs/quantised.md; or the type of a GGUF file, `q8_0`, of the diffusion model alone. None: as
            the recipe says, else as the base stores them; in a GGUF file as `Q8_0` where that is only read.
        whole: Shell patterns of native names of those that are numbers nevertheless; none: as the recipe
            says.
        quantise: Of those that `to` would usually leave whole, and that are not to stay so; as `whole`.
        **options: See `plan_merge`.

    Raises:
        ArgumentError: The output cannot or must not be written, or its name and `to` do not agree; the
            base is no file; the recipe
            asks for a LoRA, or for a folder of diffusers where the base is none; or no weight can be
            written so.
        LoraOpsError: See `plan_merge`.
    """
    recipe = recipe.with_output(to=to or "", whole=whole, quantise=quantise)
    if is_gguf(output) or recipe.output.to in GGUF_TYPES:
        sources = {
            name: natively(one) if isinstance(one, FileSource) else one
            for name, one in sources.items()
        }
    plan = plan_merge(recipe, sources, **options)
    _check_kind(plan)
    plan = stored_plan(plan, output)
    if output is None:
        return plan
    base, inputs = base_file(plan), paths_of(*sources.values())
    check_place(output, base, inputs, force=force)
    held = set(base.keys())
    if is_folder(base) and (added := [key for key in plan.tensors if key not in held]):
        raise ArgumentError(f"`{added[0]}` has no place in a folder; leave `keep` as it is")
    tensors = plan.tensors
    check_shards(output, base, tensors.values(), inputs, shard_size=shard_size, force=force)
    told = (*folder_notes(base), *storage_notes(base, tensors))
    return replace(plan, notes=(*plan.notes, *told))


def merge_file(
    plan: MergePlan,
    output: Path,
    *,
    force: bool = False,
    version: str = "",
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
    division: Division | None = None,
) -> MergeReport:
    """Run a plan into a file, into shards and their index, or into a folder, and return its report.

    The recipe stands in the metadata, with the hash of every input.

    Args:
        plan: From `plan_merge_file`.
        output: A `.safetensors` file, an index, `.safetensors.index.json`, a `.gguf` file, or a new
            folder.
        force: Whether the output may replace files.
        version: Of lorakit, for the record.
        shard_size: Most bytes of data in a shard, where the base is no index itself.
        progress: Called after each tensor.
        division: How it is done in parts; None: at once.

    Raises:
        ArgumentError: The output exists; or the base is no file.
        FormatError: An input changed while it was read; no file is written.
        NonFiniteError: NaN or infinity in what is added up, or out of the range of the dtype.
        WriteError: The disk is full, or the like; no file is written.
    """
    started = time.perf_counter()
    if division is None or division.computes:
        look_over(plan, progress)
    sink = MergedFile(plan, output, shard_size, version, force)
    whole = Whole("merge", output, sink, Work(tensor_jobs(plan.tensors), sink.compute))
    report = carry_out(whole, place("cpu"), division, started=started, progress=progress)
    if isinstance(report, MergeReport):
        return report
    return MergeReport(report.layers, report.skips, report.notes, report.seconds, report.size)


class MergedFile(CheckpointFile):
    """The checkpoint that a merge writes.

    Args:
        plan: From `plan_merge_file`.
        output: Where to.
        shard_size: See `merge_file`.
        version: Of lorakit, for the record.
        force: Whether the output may replace files.

    """

    classes: ClassVar = {**CheckpointFile.classes, **by_name(MergedLayer)}

    def __init__(
        self, plan: MergePlan, output: Path, shard_size: int, version: str, force: bool
    ) -> None:
        self._record = MergeRecord(plan, plan.recipe, version)
        self.sources = self._record.sources
        self._plan = plan
        tensors = plan.tensors.values()
        super().__init__(
            *(output, base_file(plan), tensors), shard_size=shard_size, force=force, gguf=plan.gguf
        )

    def longest(self, inputs: Sequence[Input]) -> dict[str, str]:
        """The record, with numbers that no merge gives."""
        return self._record.of_model(inputs, {"error": -1.23456e-300, "changed": 123456789})

    def compute(self, keys: Sequence[str], _: Placement) -> list[Outcome[Tensor]]:
        """Compute tensors, each into its place in the file."""
        return [
            write_tensor(self._plan.tensors[key], self.file, partial(merge_into, self._plan))
            for key in keys
        ]

    def report(self) -> MergeReport:
        """The report."""
        return summarise_merge(self._plan, self.reports)

    def metadata(self, inputs: Sequence[Input], report: Report) -> dict[str, str]:
        """The recipe, with the files' hashes and what the merge did, and what the base says of itself."""
        changed = float(len(report.layers))
        return self._record.of_model(inputs, {"error": report.error, "changed": changed})


def _check_kind(plan: MergePlan) -> None:
    """Refuse what is no checkpoint as its base is one."""
    asked = plan.recipe.output
    if asked.kind == "lora":
        raise ArgumentError(
            "the recipe asks for a LoRA, and this writes checkpoints; give the merge to `extract()` as the "
            "tuned one: `MergedSource(plan)`"
        )
    if asked.format == "diffusers" and not is_folder(plan.base):
        raise ArgumentError(
            f"the recipe asks for a folder of diffusers, and {plan.base.name} is none; give one as base, "
            "or leave `format` out"
        )


def base_file(plan: MergePlan) -> FileSource:
    """Return the base, which the result is made like.

    Raises:
        ArgumentError: It is no file.
    """
    if not isinstance(plan.base, FileSource):
        raise ArgumentError(f"{plan.base.name} is no file; merge in memory")
    return plan.base
