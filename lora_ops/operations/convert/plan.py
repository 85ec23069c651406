"""The plan of a conversion: what will be done to which layer, known from headers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from ...adapters.adapter import Adapter
from ...adapters.edited import all_keys
from ...adapters.formats import PEFT, VERA_SHARED, decode, format_named
from ...adapters.layers import Convention, Layer
from ...adapters.metadata import Input, Operation, Result, Source, edited_metadata
from ...adapters.outline import HeaderOnlySource
from ...adapters.repacking.plan import convert_notes, planned, unplaced
from ...adapters.some import tensors_without, without
from ...elements import Element, asked
from ...files import FileSource, Output, check_output
from ...linalg.ranks.budgets import Budget
from ...linalg.ranks.rules import RankRule
from ...models.architectures import Architecture, architecture_named, detect, own_parameters
from ...report import Report
from ...run.devices import Placement
from ...run.inputs import paths_of
from ...run.job import Outcome, Work
from ...source import TensorSource
from ..edit import EditPlan, Foreseen, planned_work
from ..output import Draft
from ..peft_folder import check_folder, check_no_experts, is_for_folder, keeps_alpha
from .convert import check_control, check_request, join_rule, names_in
from .foresee import foresee_lowering, foresee_renaming
from .layer import Converting, convert_work, with_left_out
from .to_lora import plan_to_lora

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ConvertOptions(TypedDict, total=False):
    """What a conversion from file to file can be told beside its format.

    Attributes:
        to: `lora`: every kind becomes plain LoRA; None: kinds stay.
        architecture: Short name of the model's; None: that of the reference, or told by the names.
        reference: The checkpoint that it is for, to find dotted names by.
        base: The checkpoint that it was trained on, for kinds that are made from the weight.
        rule: How many directions a layer gets; without `to` only layers that are joined from
            several are cut. None: all, exactly.
        dtype: Of the factors; None: each layer's own.
        dora: How to read kinds on which programs differ: paper, which is the default, or comfy;
            see docs/kinds.md.
        exact: Cut what is multiplied out exactly, not within 1e-3 of the least error.
        allow_partial: Leave out full differences that the format has no place for; the report has
            their share of the change.
        force: Whether the output may replace a file.
    """

    to: str | None
    architecture: str | None
    reference: TensorSource | None
    base: TensorSource | None
    rule: str | int | RankRule | Budget | None
    dtype: torch.dtype | Element | None
    dora: Convention
    exact: bool
    allow_partial: bool
    force: bool


def plan_convert_file(
    source: FileSource,
    output: Output,
    format: str | None = None,
    **options: Unpack[ConvertOptions],
) -> EditPlan:
    """Check everything that can be checked before the work begins, and plan it.

    Args:
        source: The adapter file.
        output: See `convert_file`.
        format: The same.
        **options: See `ConvertOptions`.

    Raises:
        LoraOpsError: As `convert`, as far as headers tell; or the output cannot, or must not, be
            written.
    """
    to, rule = options.get("to"), options.get("rule")
    reference, base = options.get("reference"), options.get("base")
    force, dora = options.get("force", False), options.get("dora", "paper")
    check_request(format, to, base)
    read = paths_of(source, reference, base)
    if is_for_folder(output, format) and isinstance(output, Path):
        check_folder(output, read, force=force)
    else:
        check_no_experts(source)
        check_output(output, read, force=force)
    adapter = decode(source, control=True)
    check_control(adapter, format, to)
    way = (
        _renaming(adapter, output, format or "", options)
        if to is None
        else _lowering(adapter, source, output, format, options)
    )
    scheme = format_named(format or adapter.format)
    settings = {} if format is None else {"format": scheme.name}
    settings |= {} if to is None else {"to": to}
    settings |= {} if rule is None else {"rank": str(rule)}
    settings |= {} if base is None else {"base": Path(base.name).name, "dora": dora}
    draft = Draft(
        output,
        scheme.name,
        [source],
        way.keys,
        adapter.extras if to is None else tensors_without(adapter.extras, VERA_SHARED.values()),
        way.architecture,
        [reference, base],
        force,
    )
    summary = f"converted to {' for '.join(filter(None, (to, format)))}"
    told = summary if rule is None else f"{summary}, rank rule {rule}"
    return EditPlan(
        draft,
        partial(way.work, draft),
        partial(_describe, source.metadata, output.stem, summary, settings),
        partial(way.foresee, draft),
        told,
        settings,
        [Path(one.name).name for one in (source, reference, base) if one is not None],
        way.notes,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """How the layers are made, of the two ways that there are.

    Attributes:
        keys: Keys by role, by name in the result.
        architecture: Of the model, where it is known.
        work: See `EditPlan`, for a draft.
        foresee: The same.
        notes: The same.
    """

    keys: Mapping[str, Mapping[str, str]]
    architecture: Architecture | None
    work: Callable[[Draft, Placement], Work[Any, Outcome[Layer]]]
    foresee: Callable[[Draft], Foreseen]
    notes: Callable[[Report], Iterable[str]]


def _renaming(adapter: Adapter, output: Output, format: str, options: ConvertOptions) -> _Way:
    """Names that change, under which kinds stay; some layers are left out."""
    reference, architecture = options.get("reference"), options.get("architecture")
    known = None if architecture is None else architecture_named(architecture)
    targets, model = _referred(reference)
    scheme = format_named(format)
    names = names_in(adapter, scheme, known or model, targets)
    left = unplaced(adapter, scheme, names) if options.get("allow_partial") else []
    converting = Converting(
        scheme,
        names,
        join_rule(options.get("rule")),
        asked(options.get("dtype")),
        measures=bool(left),
        configured=is_for_folder(output, format) and keeps_alpha(output, scheme, adapter.keys),
    )
    kept = without(adapter, left)
    pieces = planned(kept, scheme, names)
    notes = tuple(convert_notes(kept, pieces, converting.rule))
    if scheme == PEFT and names.architecture is None and not names.own:
        notes += (
            "PEFT looks for modules of exactly these names; give the model's folder as `reference=` "
            "to have them compared with its own",
        )
    work = with_left_out(convert_work(kept, pieces, converting), adapter, left)
    return _Way(
        {piece.module: piece.keys for piece in pieces},
        names.architecture,
        lambda _, where: planned_work(work, where),
        lambda _: foresee_renaming(adapter, pieces, left, converting, notes),
        lambda _: notes,
    )


def _lowering(
    adapter: Adapter,
    source: FileSource,
    output: Output,
    format: str | None,
    options: ConvertOptions,
) -> _Way:
    """Kinds that become plain LoRA, under the same names or others."""
    reference, base = options.get("reference"), options.get("base")
    architecture = options.get("architecture")
    known = None if architecture is None else architecture_named(architecture)
    targets, model = _referred(reference)
    if reference is None and isinstance(base, FileSource):
        targets, _ = _referred(base)
    lowering = plan_to_lora(
        adapter,
        decode(HeaderOnlySource(source, reads_alpha=False)).layers,
        options.get("rule"),
        format=format,
        architecture=known or model,
        reference=targets,
        base=base,
        name=source.name,
        element=asked(options.get("dtype")),
        dora=options.get("dora", "paper"),
        exact=options.get("exact", False),
        allow_partial=options.get("allow_partial", False),
        configured=is_for_folder(output, format or adapter.format),
    )

    def work(draft: Draft, where: Placement) -> Work[Any, Outcome[Layer]]:
        return lowering.work(where, overhead=draft.overhead)

    def foresee(draft: Draft) -> Foreseen:
        return foresee_lowering(lowering, overhead=draft.overhead)

    keys = all_keys(lowering.changes)
    return _Way(keys, lowering.architecture, work, foresee, lowering.notes)


def _describe(
    metadata: Mapping[str, str],
    title: str,
    summary: str,
    settings: Mapping[str, str],
    version: str,
    inputs: Sequence[Input],
    result: Result,
) -> dict[str, str]:
    operation = Operation("convert", version, summary, settings)
    return edited_metadata(Source(inputs[0], metadata), operation, replace(result, title=title))


def _referred(reference: TensorSource | None) -> tuple[dict[str, str], Architecture | None]:
    """The targets of a checkpoint, each with the model's own name of it, and the architecture."""
    if reference is None:
        return {}, None
    found = own_parameters(reference)
    own = {one.target: reference.own_key(one.key) for one in found.values()}
    return {target: key.removesuffix(".weight") for target, key in own.items()}, detect(found)
