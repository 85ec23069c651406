"""What a requantisation will do, for people and for machines, from headers alone."""

from __future__ import annotations

import math
from pathlib import Path

from ...files import dtype_name
from ...files.header import header_room
from ...files.writing.pieces import aligned
from ...models.architectures import detect, parameters
from ...models.pairing import parameter_kind
from ...run.inputs import placeholders
from ..preview import PlannedLayer, Preview
from ..weights.output import SHARD_SIZE, is_copied, is_index, rows_of, shards_of
from ..weights.storing import InScheme
from .file import RequantisedFile
from .plan import RequantisePlan


def preview_requantise(
    plan: RequantisePlan, output: Path, *, shard_size: int = SHARD_SIZE
) -> Preview:
    """Return what a requantisation will do.

    Args:
        plan: From `plan_requantise_file`.
        output: Where to.
        shard_size: See `requantise_file`.
    """
    stored = [one.storing for one in plan.tensors.values() if isinstance(one.storing, InScheme)]
    model = detect(parameters(plan.checkpoint))
    layers = [
        PlannedLayer(
            one.parameter.target,
            one.parameter.component,
            parameter_kind(one.parameter),
            one.parameter.shape,
            f"to {one.storage}",
        )
        for one in stored
    ]
    copied = sum(is_copied(one) for one in plan.tensors.values())
    return Preview(
        output=str(output),
        size_at_most=_size(plan, output, shard_size),
        layers=tuple(layers),
        told=f"requantise, {plan.wanted.to}; {len(stored)} of {len(plan.tensors)} tensors with scales, "
        f"{copied} are copied",
        settings={
            "operation": "requantise",
            "to": plan.wanted.to,
            "tensors": len(plan.tensors),
            "stored": len(stored),
            "copied": copied,
            "bits": plan.bits,
        },
        architecture=model.title if model else None,
        inputs=(Path(plan.checkpoint.name).name,),
        skips=plan.gguf.skips if plan.gguf else (),
        notes=plan.notes,
        by_component=True,
    )


def _size(plan: RequantisePlan, output: Path, shard_size: int) -> int:
    """Bytes of all files of the result, at most."""
    sink = RequantisedFile(plan, output, shard_size, "0.0.0", force=False)
    if plan.gguf is not None:
        return plan.gguf.layout.size(sink.longest(placeholders(sink.sources)))
    written = list(rows_of(plan.tensors.values()))
    data = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in written)
    rows = [(key, dtype_name(dtype), shape) for key, dtype, shape in written]
    room = 8 + aligned(header_room(rows, sink.longest(placeholders(sink.sources))))
    if not is_index(output):
        return data + room
    count = len(shards_of(plan.checkpoint, plan.tensors.values(), shard_size))
    index = sum(len(key.encode()) + len(output.name.encode()) + 32 for key, _, _ in written)
    return data + room * count + index + 1024
