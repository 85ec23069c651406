"""What a requantisation will do, for people and for machines, from headers alone."""

from __future__ import annotations

from pathlib import Path

from ...models.architectures import detect, parameters
from ...models.pairing import parameter_kind
from ..preview import PlannedLayer, Preview
from ..weights.output import SHARD_SIZE, is_copied
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
        size_at_most=RequantisedFile(plan, output, shard_size, "0.0.0", force=False).size_at_most(),
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
