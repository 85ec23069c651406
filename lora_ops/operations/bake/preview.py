"""What a bake will do, for people and for machines, from headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...adapters.formats import component
from ...files.header import header_room
from ...models.architectures import detect, parameters
from ...models.pairing import parameter_kind
from ...report import Skip
from ..preview import PlannedLayer, Preview
from ..reasons import STRENGTH_ZERO
from ..weights.gguf_file_plan import LEFT_OUT
from ..weights.output import data_size, is_copied, is_index, rows_of, stored_as
from ..weights.shares import Share
from ..weights.storing_plan import kept_metadata
from .bake import NO_PARAMETER
from .plan import BakePlan

# Bytes of the record of a bake, beside what the checkpoint says of itself; of each input.
_RECORD = 4096


def preview_bake(plan: BakePlan, output: Path) -> Preview:
    """Return what a bake will do.

    Args:
        plan: From `plan_bake_file`.
        output: Where to.
    """
    checkpoint = plan.checkpoint
    dtype = "as stored" if plan.element is None else plan.element.title
    to = plan.wanted.to
    how = f"{dtype}, {to}" if to and plan.element is not None else to or dtype
    copied = sum(is_copied(one) for one in plan.tensors.values())
    changed = sum(bool(one.steps) for one in plan.tensors.values())
    model = detect(parameters(checkpoint))
    return Preview(
        output=str(output),
        size_at_most=_size(plan, output),
        layers=tuple(_changed(plan)),
        told=f"{plan.operation}, {how}; {changed} of {len(plan.tensors)} tensors change, "
        f"{copied} are copied",
        settings={
            "operation": plan.operation,
            "dtype": dtype,
            "tensors": len(plan.tensors),
            "changed": changed,
            "copied": copied,
        },
        architecture=model.title if model else None,
        inputs=(
            Path(checkpoint.name).name,
            *(f"{Path(one.source.name).name} ({one.strength:g})" for one in plan.ingredients),
        ),
        skips=(
            *(_skip(share, NO_PARAMETER) for share in plan.lost),
            *(_skip(share, STRENGTH_ZERO) for share in plan.idle),
            *(_skip(share, LEFT_OUT) for share in plan.outside),
            *(plan.gguf.skips if plan.gguf else ()),
        ),
        notes=plan.notes,
        by_component=True,
    )


def _changed(plan: BakePlan) -> Iterator[PlannedLayer]:
    for change in (one for found in plan.changes.values() for one in found):
        parameter = change.parameter
        yield PlannedLayer(
            parameter.target,
            parameter.component,
            parameter_kind(parameter),
            parameter.shape,
            f"to {stored_as(plan.tensors[parameter.key])}",
        )


def _skip(share: Share, reason: str) -> Skip:
    return Skip(share.name, component(share.name), share.module.kind, reason, 0.0)


def _size(plan: BakePlan, output: Path) -> int:
    """Bytes of all files of the result, at most."""
    written = list(rows_of(plan.tensors.values()))
    data = data_size(written)
    rows = [(key, one.name, shape) for key, one, shape in written]
    told = sum(
        2 * (len(key.encode()) + len(text.encode())) + 16
        for source in (plan.checkpoint, *(one.source for one in plan.ingredients))
        for key, text in source.metadata.items()
    )
    more = {**plan.wanted.record(), **kept_metadata(plan.tensors, plan.checkpoint)}
    told += sum(2 * (len(key.encode()) + len(text.encode())) + 16 for key, text in more.items())
    spare = told + _RECORD * (1 + len(plan.ingredients))
    if plan.gguf is not None:
        return plan.gguf.layout.size({}) + spare
    if is_index(output):
        spare += sum(len(key.encode()) + len(output.name.encode()) + 32 for key, _, _ in rows)
    return data + 8 + header_room(rows, spare=spare)
