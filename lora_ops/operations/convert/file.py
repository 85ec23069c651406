"""Convert from file to file, and to the folder that PEFT reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

import torch

from ...adapters.adapter import Adapter
from ...adapters.edited import Edited, all_keys
from ...adapters.formats import PEFT, decode, format_named
from ...adapters.layers import Convention
from ...adapters.metadata import Input, Operation, Result, Source, edited_metadata
from ...adapters.model import names_for
from ...adapters.outline import Outline
from ...adapters.repacking.plan import convert_notes, planned, unplaced
from ...files import FileSource, Output, check_output
from ...linalg.ranks.budgets import Budget
from ...linalg.ranks.rules import RankRule
from ...models.architectures import Architecture, architecture_named, detect, own_parameters
from ...report import Report
from ...run.devices import Placement
from ...run.inputs import paths_of
from ...run.workers import Progress
from ...source import TensorSource
from ..output import Draft
from ..peft_folder import check_folder, is_for_folder, keeps_alpha, write_result
from .convert import check_request, join_rule
from .layer import Converting, left_out, run_convert, without
from .to_lora import plan_to_lora


def convert_file(
    source: FileSource,
    output: Output,
    format: str | None = None,
    *,
    to: str | None = None,
    architecture: str | None = None,
    reference: TensorSource | None = None,
    base: TensorSource | None = None,
    rule: str | int | RankRule | Budget | None = None,
    dtype: torch.dtype | None = None,
    dora: Convention = "paper",
    exact: bool = False,
    allow_partial: bool = False,
    placement: Placement | None = None,
    force: bool = False,
    version: str = "",
    progress: Progress | None = None,
) -> Report:
    """Write an adapter in another format, or as plain LoRA, or both; see `convert`.

    Args:
        source: The adapter file.
        output: Where to; for `peft` a folder, which is made, unless the name ends as a file's does:
            scales are then in the factors.
        format: kohya, comfy, diffusers or peft; None: that it has, in one file.
        to: `lora`: every kind becomes plain LoRA; None: kinds stay.
        architecture: Short name of the model's; None: that of the reference, or told by the names.
        reference: The checkpoint that it is for, to find dotted names by.
        base: The checkpoint that it was trained on, for kinds that are made from the weight.
        rule: How many directions a layer gets; without `to` only layers that are joined from
            several are cut. None: all, exactly.
        dtype: Of the factors; None: each layer's own.
        dora: How to read kinds on which programs differ; see docs/kinds.md.
        exact: Cut what is multiplied out exactly, not within 1e-3 of the least error.
        allow_partial: Leave out full differences that the format has no place for; the report has
            their share of the change.
        placement: Where to compute; None: the CPU.
        force: Whether the output may replace a file.
        version: Of lorakit, for the record.
        progress: Called after each layer.

    Raises:
        LoraOpsError: As `convert`; or the output cannot, or must not, be written.
    """
    started = time.perf_counter()
    check_request(format, to, base)
    read = paths_of(source, reference, base)
    if is_for_folder(output, format) and isinstance(output, Path):
        check_folder(output, read, force=force)
    else:
        check_output(output, read, force=force)
    adapter = decode(source)
    known = None if architecture is None else architecture_named(architecture)
    targets, model = _referred(reference)
    if reference is None and isinstance(base, FileSource):
        targets, _ = _referred(base)
    if to is None:
        scheme = format_named(format or "")
        names = names_for(adapter, known or model, targets, scheme)
        left = unplaced(adapter, scheme, names) if allow_partial else []
        converting = Converting(
            scheme,
            names,
            join_rule(rule),
            dtype,
            measures=bool(left),
            configured=is_for_folder(output, format) and keeps_alpha(output, scheme, adapter.keys),
        )
        work = _renaming(adapter, left, converting)
    else:
        lowering = plan_to_lora(
            adapter,
            decode(Outline(source)).layers,
            rule,
            format=format,
            architecture=known or model,
            reference=targets,
            base=base,
            name=source.name,
            dtype=dtype,
            dora=dora,
            exact=exact,
            allow_partial=allow_partial,
            configured=is_for_folder(output, format or adapter.format),
        )
        work = _Work(
            all_keys(lowering.changes), lowering.architecture, lowering.run, lowering.notes
        )
    scheme = format_named(format or adapter.format)
    told = {} if format is None else {"format": scheme.name}
    told |= {} if to is None else {"to": to}
    told |= {} if rule is None else {"rank": str(rule)}
    told |= {} if base is None else {"base": Path(base.name).name, "dora": dora}
    summary = f"converted to {' for '.join(filter(None, (to, format)))}"

    def describe(inputs: Sequence[Input], result: Result) -> dict[str, str]:
        titled = replace(result, title=output.stem)
        operation = Operation("convert", version, summary, told)
        return edited_metadata(Source(inputs[0], source.metadata), operation, titled)

    draft = Draft(
        output,
        scheme.name,
        [source],
        work.keys,
        adapter.extras,
        work.architecture,
        [reference, base],
        force,
    )
    results = work.run(overhead=draft.overhead, placement=placement, progress=progress)
    return write_result(draft, results, describe, started=started, notes=work.notes)


class _Run(Protocol):
    def __call__(
        self, *, overhead: int, placement: Placement | None, progress: Progress | None
    ) -> Iterator[Edited]: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """The layers to write, whichever of the two conversions makes them.

    Attributes:
        keys: Keys by role, by name in the result.
        architecture: Of the model, where it is known.
        run: Makes the layers.
        notes: Gives the notes of the report.
    """

    keys: Mapping[str, Mapping[str, str]]
    architecture: Architecture | None
    run: _Run
    notes: Callable[[Report], Iterable[str]]


def _renaming(adapter: Adapter, left: Sequence[str], converting: Converting) -> _Work:
    """The conversion that changes names and keeps kinds, without the layers in `left`."""
    names = converting.names
    kept = without(adapter, left)
    pieces = planned(kept, converting.format, names)

    def run(
        *, overhead: int, placement: Placement | None, progress: Progress | None
    ) -> Iterator[Edited]:
        del overhead  # of no use without a budget
        run = run_convert(kept, pieces, converting, placement=placement, progress=progress)
        return chain(run, left_out(adapter, left))

    keys = {piece.module: piece.keys for piece in pieces}
    notes = tuple(convert_notes(kept, pieces, converting.rule))
    if converting.format == PEFT and names.architecture is None and not names.own:
        notes += (
            "PEFT looks for modules of exactly these names; give the model's folder as `reference=` "
            "to have them compared with its own",
        )
    return _Work(keys, names.architecture, run, lambda _: notes)


def _referred(reference: TensorSource | None) -> tuple[dict[str, str], Architecture | None]:
    """The targets of a checkpoint, each with the model's own name of it, and the architecture."""
    if reference is None:
        return {}, None
    found = own_parameters(reference)
    own = {one.target: reference.own_key(one.key) for one in found.values()}
    return {target: key.removesuffix(".weight") for target, key in own.items()}, detect(found)
