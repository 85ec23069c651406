"""Bake from file to file: streamed in, streamed out, complete under its name or not at all."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...adapters.layers import Convention
from ...adapters.metadata import Input, Operation, Source, baked_metadata
from ...adapters.metadata.provenance import check_bakes
from ...adapters.strengths.ingredient import Ingredient
from ...elements import Element
from ...errors import ArgumentError
from ...files import (
    FileSource,
)
from ...parts.carry_out import carry_out
from ...parts.whole import Division, Whole
from ...report import Report
from ...run.devices import Placement, place
from ...run.inputs import hashed, paths_of
from ...run.job import Outcome, Work
from ...run.workers import Progress
from ...source import TensorSource
from ..weights.checkpoint_file import CheckpointFile
from ..weights.gguf_plan import with_gguf, writes_gguf
from ..weights.native_file import natively
from ..weights.output import (
    SHARD_SIZE,
    check_place,
    check_shards,
    folder_notes,
    storage_notes,
)
from ..weights.storing_plan import Wanted, kept_metadata, model_keys, with_storing
from ..weights.written import tensor_jobs, write_tensor
from .bake import summarise_bake
from .plan import BakePlan, plan_bake


def plan_bake_file(
    checkpoint: FileSource,
    ingredients: Sequence[Ingredient],
    *,
    output: Path | None = None,
    force: bool = False,
    dtype: torch.dtype | Element | None = None,
    allow_partial: bool = False,
    sign: int = 1,
    allow_other: bool = False,
    dora: Convention = "paper",
    shard_size: int = SHARD_SIZE,
    to: str | None = None,
    whole: Sequence[str] = (),
    quantise: Sequence[str] = (),
    rounding: str = "nearest",
    seed: int = 0,
) -> BakePlan:
    """Check everything that can be checked before the work begins, and plan it.

    Args:
        checkpoint: What is to be changed: a file, an index of shards, or a folder as diffusers writes.
        ingredients: The adapters, each with its strength.
        output: Where the result is to go, `.safetensors`, `.safetensors.index.json` or `.gguf`; a
            new folder where the checkpoint is one; None: nowhere yet.
        force: Whether the output may replace files.
        dtype: Of the result; None: each tensor as it is stored, with scales too.
        allow_partial: Leave out layers that the checkpoint has no parameter for.
        sign: 1 to bake, -1 to unbake.
        allow_other: Unbake also what is not in the checkpoint by its record.
        dora: Whose convention, of kinds that programs read differently; see docs/kinds.md.
        shard_size: See `bake_file`.
        to: The way in which the diffusion model's matrices are written, with scales: `fp8_scaled`; see
            docs/quantised.md; or the type of a GGUF file, `q8_0`, of the diffusion model alone. None: as
            the checkpoint stores them; in a GGUF file as `Q8_0` where that is only read.
        whole: Shell patterns of native names of those that are numbers nevertheless.
        quantise: Of those that `to` would usually leave whole, and that are not to stay so.
        rounding: See `plan_bake`.
        seed: See there.

    Raises:
        ArgumentError: The output cannot or must not be written, or its name and `to` do not agree;
            or no weight can be written so.
        MismatchError: What is to be taken out is not in the checkpoint by its record, or not at
            that strength.
        LoraOpsError: See `plan_bake`.
    """
    inputs = paths_of(checkpoint, *(one.source for one in ingredients))
    is_gguf = writes_gguf(output, to or "", checkpoint)
    checkpoint = natively(checkpoint) if is_gguf else checkpoint
    if output is not None:
        check_place(output, checkpoint, inputs, force=force)
    plan = plan_bake(
        *(checkpoint, ingredients),
        dtype=dtype,
        allow_partial=allow_partial,
        sign=sign,
        dora=dora,
        rounding=rounding,
        seed=seed,
    )
    if sign < 0:
        with hashed([one.source for one in ingredients]) as files:
            records = _records(ingredients, files())
        notes = check_bakes(checkpoint.metadata, records, sign, allow_other=allow_other)
        plan = replace(plan, notes=(*plan.notes, *notes))
    wanted = replace(plan.wanted, to=to or "", whole=tuple(whole), quantise=tuple(quantise))
    numbers = model_keys(checkpoint) if dtype is not None else ()
    if is_gguf:
        plan, notes = _in_gguf(plan, wanted, numbers)
    else:
        tensors, notes = with_storing(plan.tensors, checkpoint, wanted, numbers)
        plan = replace(plan, tensors=tensors)
    told = (*notes, *folder_notes(checkpoint), *storage_notes(checkpoint, plan.tensors))
    plan = replace(plan, wanted=wanted, notes=(*plan.notes, *told))
    if output is not None:
        check_shards(
            *(output, checkpoint, plan.tensors.values(), inputs), shard_size=shard_size, force=force
        )
    return plan


def _in_gguf(
    plan: BakePlan, wanted: Wanted, numbers: Container[str]
) -> tuple[BakePlan, tuple[str, ...]]:
    """The plan of a bake whose result is a GGUF file, and what is worth a sentence.

    Raises:
        ArgumentError: Nothing of what changes is in the file; or see `with_gguf`.
    """
    tensors, gguf = with_gguf(plan.tensors, plan.checkpoint, wanted, numbers)
    changes = {key: one for key, one in plan.changes.items() if key in tensors}
    if not changes:
        raise ArgumentError(
            "nothing to bake: the LoRA changes text encoders alone, which a GGUF file does not hold"
        )
    left = (one for key, one in plan.changes.items() if key not in tensors)
    outside = tuple(share for found in left for change in found for share in change.shares)
    plan = replace(plan, tensors=tensors, changes=changes, gguf=gguf, outside=outside)
    return plan, gguf.notes


def bake_file(
    plan: BakePlan,
    checkpoint: FileSource,
    output: Path,
    *,
    force: bool = False,
    version: str = "",
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
    division: Division | None = None,
) -> Report:
    """Run a plan into a file, or into shards and their index, and return its report.

    Args:
        plan: From `plan_bake_file`, of this checkpoint.
        checkpoint: What is changed.
        output: A `.safetensors` file; or an index, `.safetensors.index.json`, whose shards get its
            stem for a name and hold what those of the checkpoint held; or a `.gguf` file; or a new folder.
        force: Whether the output may replace files.
        version: Of lorakit, for the record.
        shard_size: Most bytes of data in a shard, where the checkpoint is no index itself.
        progress: Called after each tensor.
        division: How it is done in parts; None: at once.

    Raises:
        ArgumentError: The output exists.
        FormatError: An input changed while it was read; no file is written.
        NonFiniteError: NaN or infinity in what is added up, or out of the range of the dtype.
        WriteError: The disk is full, or the like; no file is written.
    """
    started = time.perf_counter()
    sink = BakedFile(plan, checkpoint, output, shard_size, version, force)
    whole = Whole(plan.operation, output, sink, Work(tensor_jobs(plan.tensors), sink.compute))
    return carry_out(whole, place("cpu"), division, started=started, progress=progress)


class BakedFile(CheckpointFile):
    """The checkpoint that a bake writes.

    Args:
        plan: From `plan_bake_file`.
        checkpoint: What is changed.
        output: Where to.
        shard_size: See `bake_file`.
        version: Of lorakit, for the record.
        force: Whether the output may replace files.
    """

    def __init__(
        self,
        plan: BakePlan,
        checkpoint: FileSource,
        output: Path,
        shard_size: int,
        version: str,
        force: bool,
    ) -> None:
        self.sources = _sources(plan)
        self._plan, self._version = plan, version
        tensors = plan.tensors.values()
        super().__init__(
            *(output, checkpoint, tensors), shard_size=shard_size, force=force, gguf=plan.gguf
        )

    def longest(self, inputs: Sequence[Input]) -> dict[str, str]:
        """The record, with the longest numbers."""
        widest = dict.fromkeys(_measured(Report(())), -1.23456e-300)
        return _metadata(self._plan, inputs, widest, self._version)

    def compute(self, keys: Sequence[str], _: Placement) -> list[Outcome[Tensor]]:
        """Compute tensors, each into its place in the file."""
        return [write_tensor(self._plan.tensors[key], self.file) for key in keys]

    def report(self) -> Report:
        """The report."""
        return summarise_bake(self._plan, self.reports)

    def metadata(self, inputs: Sequence[Input], report: Report) -> dict[str, str]:
        """The record of the bake, beside what the checkpoint says of itself."""
        return _metadata(self._plan, inputs, _measured(report), self._version)

    def notes(self, inputs: Sequence[Input]) -> Sequence[str]:
        """Whether the checkpoint has some of it already, by its record."""
        if self._plan.sign < 0:
            return ()
        records = _records(self._plan.ingredients, inputs[1:])
        return check_bakes(self._plan.checkpoint.metadata, records, 1)


def _records(ingredients: Sequence[Ingredient], files: Sequence[Input]) -> list[Source]:
    return [one.record(file) for file, one in zip(files, ingredients, strict=True)]


def _sources(plan: BakePlan) -> list[TensorSource]:
    return [plan.checkpoint, *(one.source for one in plan.ingredients)]


def _measured(report: Report) -> dict[str, float]:
    return {"error": report.error, "left_out": report.left_out}


def _metadata(
    plan: BakePlan, inputs: Sequence[Input], measured: Mapping[str, float], version: str
) -> dict[str, str]:
    checkpoint, *adapters = inputs
    found = baked_metadata(
        checkpoint,
        plan.checkpoint.metadata,
        _records(plan.ingredients, adapters),
        Operation(plan.operation, version),
        dtype=plan.dtype,
        measured=measured,
    )
    told = kept_metadata(plan.tensors, plan.checkpoint)
    return {**found, **plan.wanted.record(), **told}
