"""Convert: an adapter under the names of another program, with the same changes.

Where one program fuses projections and the other does not, layers are cut by rows or joined; see
`rows`. Alphas go into up where the format has no place for them. Kinds stay, or become plain LoRA.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from ...adapters.adapter import Adapter
from ...adapters.edited import all_keys, collect
from ...adapters.formats import (
    CONTROL,
    PEFT_CONFIG,
    PEFT_METADATA,
    Format,
    ModelNames,
    format_named,
    model_names,
    with_unit_scales,
)
from ...adapters.layers import Convention
from ...adapters.model import names_for
from ...adapters.repacking.plan import convert_notes, planned, unplaced
from ...adapters.some import without
from ...elements import asked
from ...errors import ArgumentError
from ...linalg.ranks.budgets import Budget
from ...linalg.ranks.rules import RankRule, parse_rank
from ...models.architectures import Architecture
from ...report import Report
from ...run.devices import place
from ...run.stream import stream
from ...run.workers import Progress
from ...source import TensorSource
from .layer import Converting, convert_work, with_left_out
from .to_lora import plan_to_lora


def convert(
    adapter: Adapter,
    format: str | None = None,
    *,
    to: str | None = None,
    architecture: Architecture | None = None,
    reference: Collection[str] = (),
    base: TensorSource | None = None,
    rule: str | int | RankRule | Budget | None = None,
    dtype: torch.dtype | None = None,
    dora: Convention = "paper",
    exact: bool = False,
    allow_partial: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[Adapter, Report]:
    """Return the adapter in another format, or as plain LoRA, all in memory, and its report.

    Args:
        adapter: Its layers are read one after another.
        format: kohya, comfy, diffusers or peft; of a Control-LoRA control-lora alone; None: the one it has,
            which needs `to`.
        to: `lora`: every kind becomes plain LoRA, see `to_lora`; None: kinds stay.
        architecture: Of the model it is for; None: told by its names and shapes.
        reference: Canonical targets of a checkpoint, which give a kohya name its dots back; as a
            mapping, with what the model itself calls the module of each, for PEFT.
        base: The checkpoint that it was trained on, for kinds that are made from the weight.
        rule: How many directions a layer gets; without `to` only layers that are joined from
            several are cut. None: all, exactly. With `to` it may be a budget.
        dtype: Of the factors; None: each layer's own.
        dora: How to read kinds on which programs differ; see docs/kinds.md.
        exact: Cut what is multiplied out exactly, not within 1e-3 of the least error.
        allow_partial: Leave out full differences that the format has no place for; the report has
            their share of the change.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        progress: Called after each layer.

    Raises:
        ArgumentError: A name cannot be found in the model, there is no such format, nothing is asked
            for, or a layer is no smaller as an exact LoRA.
        TargetMismatchError: Two layers change the same rows, or the base lacks a weight.
        UnsupportedLayerError: The format has no place for a layer, its kind cannot be cut or joined,
            or it needs the base.
        WeightShapeError: A layer is not of the shape that the model's weights have.
        NonFiniteError: NaN or infinity in a layer that is computed with, or out of range then.
    """
    check_request(format, to, base)
    check_control(adapter, format, to)
    where = place(device)
    if to is not None:
        lowering = plan_to_lora(
            adapter,
            adapter.layers,
            rule,
            format=format,
            architecture=architecture,
            reference=reference,
            base=base,
            element=asked(dtype),
            dora=dora,
            exact=exact,
            allow_partial=allow_partial,
        )
        results = stream(lowering.work(where), where, progress=progress)
        result, report = collect(lowering.changes, results, keys=all_keys(lowering.changes))
        notes = lowering.notes(report)
    else:
        scheme = format_named(format or adapter.format)
        names = names_in(adapter, scheme, architecture, reference)
        left = unplaced(adapter, scheme, names) if allow_partial else []
        kept = without(adapter, left)
        converting = Converting(scheme, names, join_rule(rule), asked(dtype), measures=bool(left))
        pieces = planned(kept, scheme, names)
        work = with_left_out(convert_work(kept, pieces, converting), adapter, left)
        results = stream(work, where, progress=progress)
        keys = {piece.module: piece.keys for piece in pieces}
        result, report = collect(adapter, results, format=scheme.name, keys=keys)
        notes = convert_notes(kept, pieces, converting.rule)
    metadata = {
        key: text
        for key, text in adapter.metadata.items()
        if key not in (PEFT_METADATA, PEFT_CONFIG)
    }
    if not format_named(result.format).keeps_alpha:
        ranks = {module: layer.rank for module, layer in result.layers.items()}
        metadata |= with_unit_scales([adapter.metadata], ranks)
    return replace(result, metadata=metadata), replace(report, notes=tuple(notes))


def check_request(format: str | None, to: str | None, base: object) -> None:
    """Refuse a conversion that asks for nothing, or for what goes with `to` alone.

    Raises:
        ArgumentError: Says what to give.
    """
    if to not in (None, "lora"):
        raise ArgumentError(f"`{to}` is no kind to convert to; it is `lora`")
    if to is None and format is None:
        raise ArgumentError('nothing to convert; give `format=`, or `to="lora"`, or both')
    if to is None and base is not None:
        raise ArgumentError(
            'names alone do not need the base weights; leave it out, or add `to="lora"`'
        )


def check_control(adapter: Adapter, format: str | None, to: str | None) -> None:
    """Refuse to make a Control-LoRA of another adapter, or another adapter of one.

    Raises:
        ArgumentError: Says what can be done instead.
    """
    is_control = adapter.format == CONTROL.name
    if is_control and (format != CONTROL.name or to is not None):
        raise ArgumentError(
            "a Control-LoRA changes the copy of a UNet in a ControlNet, for which no other format has a "
            f"place; use format `{CONTROL.name}`, which writes it again, or bake it into its ControlNet"
        )
    if format == CONTROL.name and not is_control:
        raise ArgumentError(
            f"format `{CONTROL.name}` is of ControlNets alone, whose own parts it holds; choose another"
        )


def names_in(
    adapter: Adapter,
    format: Format,
    architecture: Architecture | None,
    reference: Collection[str],
) -> ModelNames:
    """Return the names of the model that an adapter is for, as `names_for`; a Control-LoRA needs none."""
    if format == CONTROL:
        return model_names(None)
    return names_for(adapter, architecture, reference, format)


def join_rule(rule: str | int | RankRule | Budget | None) -> RankRule | None:
    """Return the rule for layers that are joined from several.

    Raises:
        ArgumentError: It is no rule, or a budget, which needs to know all layers.
    """
    return None if rule is None else parse_rank(str(rule) if isinstance(rule, Budget) else rule)
