"""What a merge will do, for people and for machines: from headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...models.architectures import detect, parameters
from ...models.pairing import parameter_kind
from ...report import counted
from ..preview import PlannedLayer, Preview
from ..weights.output import SHARD_SIZE, stored_as
from .file import MergedFile
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
        size_at_most=MergedFile(plan, output, shard_size, "0.0.0", force=False).size_at_most(),
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
