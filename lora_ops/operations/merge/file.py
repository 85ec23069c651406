"""Bake from file to file: streamed in, streamed out, complete under its name or not at all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...adapters.layers import Convention
from ...adapters.metadata import Input, Operation, Source, baked_metadata
from ...adapters.metadata.provenance import check_bakes
from ...adapters.strengths.ingredient import Ingredient
from ...errors import ArgumentError
from ...files import (
    INDEX,
    FileSource,
    SafetensorsWriter,
    ShardsWriter,
    check_output,
    dtype_name,
    partition,
    shard_paths,
)
from ...files.header import render_header
from ...report import Report, Skip
from ...run.devices import place
from ...run.inputs import hashed, paths_of, unhashed
from ...run.output import finished
from ...run.workers import Progress
from ...source import TensorSource
from .bake import run_bake, summarise_bake
from .plan import BakePlan, plan_bake
from .tensor import BakedLayer

#: Bytes of data in a shard where the checkpoint has none of its own, as transformers writes them.
SHARD_SIZE = 5 * 10**9


def plan_bake_file(
    checkpoint: FileSource,
    ingredients: Sequence[Ingredient],
    *,
    output: Path | None = None,
    force: bool = False,
    dtype: torch.dtype | None = None,
    allow_partial: bool = False,
    sign: int = 1,
    allow_other: bool = False,
    dora: Convention = "paper",
    shard_size: int = SHARD_SIZE,
) -> BakePlan:
    """Check everything that can be checked before the work begins, and plan it.

    Args:
        checkpoint: What is to be changed: a file, or an index of shards.
        ingredients: The adapters, each with its strength.
        output: Where the result is to go, `.safetensors` or `.safetensors.index.json`; None:
            nowhere yet.
        force: Whether the output may replace files.
        dtype: Of the result; None: each tensor as it is stored.
        allow_partial: Leave out layers that the checkpoint has no parameter for.
        sign: 1 to bake, -1 to unbake.
        allow_other: Unbake also what is not in the checkpoint by its record.
        dora: Whose convention, of kinds that programs read differently; see docs/kinds.md.
        shard_size: See `bake_file`.

    Raises:
        ArgumentError: The output cannot or must not be written, or the checkpoint is a folder.
        QuantisedError: The checkpoint's numbers are stored with scales.
        MismatchError: What is to be taken out is not in the checkpoint by its record, or not at
            that strength.
        LoraOpsError: See `plan_bake`.
    """
    if Path(checkpoint.name).is_dir():
        raise ArgumentError(
            "is a folder, whose parts keep to their own files; give the file of the weights in it",
            path=checkpoint.name,
        )
    inputs = paths_of(checkpoint, *(one.source for one in ingredients))
    if output is not None:
        suffix = INDEX if _is_index(output) else ".safetensors"
        check_output(output, inputs, force=force, suffix=suffix)
    plan = plan_bake(
        checkpoint, ingredients, dtype=dtype, allow_partial=allow_partial, sign=sign, dora=dora
    )
    if sign < 0:
        with hashed([one.source for one in ingredients]) as files:
            records = _records(ingredients, files())
        notes = check_bakes(checkpoint.metadata, records, sign, allow_other=allow_other)
        plan = replace(plan, notes=(*plan.notes, *notes))
    if output is not None and _is_index(output):
        shards = partition(checkpoint, plan.dtypes, shard_size)
        for path in shard_paths(output, len(shards)):
            check_output(path, inputs, force=force)
    return plan


def bake_file(
    plan: BakePlan,
    checkpoint: FileSource,
    output: Path,
    *,
    force: bool = False,
    version: str = "",
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> Report:
    """Run a plan into a file, or into shards and their index, and return its report.

    Args:
        plan: From `plan_bake_file`, of this checkpoint.
        checkpoint: What is changed.
        output: A `.safetensors` file; or an index, `.safetensors.index.json`, whose shards get its
            stem for a name and hold what those of the checkpoint held.
        force: Whether the output may replace files.
        version: Of lorakit, for the record.
        shard_size: Most bytes of data in a shard, where the checkpoint is no index itself.
        progress: Called after each tensor.

    Raises:
        ArgumentError: The output exists.
        FormatError: An input changed while it was read; no file is written.
        NonFiniteError: NaN or infinity in what is added up, or out of the range of the dtype.
        WriteError: The disk is full, or the like; no file is written.
    """
    started = time.perf_counter()
    reports: list[BakedLayer | Skip] = []
    with (
        hashed(_sources(plan)) as inputs,
        _writer(plan, checkpoint, output, shard_size, version, force) as writer,
    ):
        workers = place("cpu").workers
        for baked in run_bake(plan, workers=workers, fresh=True, progress=progress):
            writer.write(baked.key, baked.tensor)
            reports.extend(baked.reports)
        report = summarise_bake(plan, reports)
        read = inputs()
        written = writer.finish(_metadata(plan, read, _measured(report), version))
    if plan.sign > 0:
        notes = check_bakes(plan.checkpoint.metadata, _records(plan.ingredients, read[1:]), 1)
        report = replace(report, notes=(*report.notes, *notes))
    return finished(report, read, started, written.size)


def _is_index(output: Path) -> bool:
    return output.name.lower().endswith(INDEX)


def _writer(
    plan: BakePlan,
    checkpoint: FileSource,
    output: Path,
    shard_size: int,
    version: str,
    force: bool,
) -> SafetensorsWriter | ShardsWriter:
    """The writer for this output, with room for the header of what is planned."""
    blank = [replace(one, sha256="0" * 64) for one in map(unhashed, _sources(plan))]
    widest = dict.fromkeys(_measured(Report(())), -1.23456e-300)
    metadata = _metadata(plan, blank, widest, version)
    rows = [
        # No offset has more digits than these will.
        (key, dtype_name(dtype), checkpoint.shape(key), 10**13)
        for key, dtype in plan.dtypes.items()
    ]
    room = len(render_header(rows, metadata))
    if not _is_index(output):
        return SafetensorsWriter(output, header_room=room, hashed=False, replace=force)
    shards = partition(checkpoint, plan.dtypes, shard_size)
    return ShardsWriter(output, shards, header_room=room, hashed=False, replace=force)


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
    return baked_metadata(
        checkpoint,
        plan.checkpoint.metadata,
        _records(plan.ingredients, adapters),
        Operation(plan.operation, version),
        dtype=plan.dtype,
        measured=measured,
    )
