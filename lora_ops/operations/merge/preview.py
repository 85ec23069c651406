"""What a merge will do, for people and for machines: from headers alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from ...files import beside_weights, dtype_name
from ...files.header import header_room
from ...files.writing.pieces import aligned
from ...models.architectures import detect, parameters
from ...models.pairing import parameter_kind
from ...report import counted
from ...run.inputs import placeholders
from ..preview import PlannedLayer, Preview
from ..weights.output import SHARD_SIZE, is_folder, is_index, rows_of, shards_of, stored_as
from .file import MergedFile, base_file
from .plan import MergePlan


def preview_merge(plan: MergePlan, output: Path, *, shard_size: int = SHARD_SIZE) -> Preview:
    """Return what a merge will do.

    Args:
        plan: From `plan_merge_file`.
        output: Where to.
        shard_size: See `merge_file`.

    Raises:
        ArgumentError: The base is no file.
    """
    model = detect(parameters(plan.base))
    names = [name for name in plan.recipe.files if name in plan.sources]
    dtype = plan.recipe.output.dtype
    told = ", ".join(f"{part} {name}" for part, name in dtype.items()) or "as stored"
    to = plan.recipe.output.to
    how = f"{told}, {to}" if to and dtype else to or told
    twice = any(one.steps and one.storing and one.storing.looks for one in plan.tensors.values())
    passes = 2 * plan.passes if twice else plan.passes
    counts = {
        "tensors": len(plan.tensors),
        "merged": len(plan.merged) - plan.taken,
        "taken": plan.taken,
        "copied": len(plan.copied),
        "left_out": len(plan.dropped),
        "only_base": len(plan.only_base),
        "only_others": sum(map(len, plan.only_others.values())),
        "passes": passes,
    }
    methods = dict.fromkeys(step.method for step in plan.recipe.steps)
    return Preview(
        output=str(output),
        size_at_most=_size(plan, output, shard_size),
        layers=tuple(_layers(plan)),
        told=f"{', '.join(methods)}, {how}; of {counted(counts['tensors'], 'tensor')} "
        f"{counts['merged']} merged, {plan.taken} taken, {counts['copied']} copied; "
        f"read {'once' if passes == 1 else f'up to {passes} times'}",
        settings={"operation": "merge", "methods": list(methods), "dtype": told, **counts},
        architecture=model.title if model else None,
        inputs=tuple(f"{name} = {Path(plan.sources[name].name).name}" for name in names),
        skips=plan.gguf.skips if plan.gguf else (),
        notes=plan.notes,
        by_component=True,
    )


def _layers(plan: MergePlan) -> Iterator[PlannedLayer]:
    for planned in plan.tensors.values():
        for parameter in (step.parameter for step in planned.steps):
            yield PlannedLayer(
                parameter.target,
                parameter.component,
                parameter_kind(parameter),
                parameter.shape,
                f"merged, to {stored_as(planned)}",
            )


def _size(plan: MergePlan, output: Path, shard_size: int) -> int:
    """Bytes of all files of the result, at most."""
    base = base_file(plan)
    sink = MergedFile(plan, output, shard_size, "0.0.0", force=False)
    if plan.gguf is not None:
        return plan.gguf.layout.size(sink.longest(placeholders(sink.sources)))
    written = list(rows_of(plan.tensors.values()))
    data = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in written)
    rows = [(key, dtype_name(dtype), shape) for key, dtype, shape in written]
    room = 8 + aligned(header_room(rows, sink.longest(placeholders(sink.sources))))
    if is_folder(base):
        others = sum((Path(base.name) / name).stat().st_size for name in beside_weights(base)[0])
        return data + room * len(base.paths) + others
    if not is_index(output):
        return data + room
    index = {key: output.name for key, _, _ in written}
    shards = shards_of(base, plan.tensors.values(), shard_size)
    return data + room * len(shards) + 2 * len(json.dumps(index)) + 1024
