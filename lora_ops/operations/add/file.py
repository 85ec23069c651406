"""Add from files to a file."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...adapters.adapter import Adapter
from ...adapters.edited import converted
from ...adapters.formats import decode, format_named
from ...adapters.matching.align import match_adapters
from ...adapters.matching.group import Term
from ...adapters.metadata import Input, Operation, Result, joined_metadata
from ...adapters.strengths.ingredient import Ingredient
from ...adapters.strengths.rules import parse_rules
from ...errors import ArgumentError
from ...files import FileSource, Output, check_output
from ...linalg.ranks.rules import RankRule, parse_rank
from ...models.architectures import architecture_named, parameters
from ...report import Report
from ...run.devices import Placement
from ...run.inputs import paths_of
from ...run.workers import Progress
from ..methods import check_method
from ..output import Draft
from ..peft_folder import check_folder, check_written, is_for_folder, keeps_alpha, write_result
from .add import Adding, add_notes, run_add


def add_files(
    ingredients: Sequence[Ingredient],
    output: Output,
    rule: str | int | RankRule | None = None,
    *,
    where: Sequence[str] = (),
    method: str = "sum",
    options: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
    format: str | None = None,
    architecture: str | None = None,
    reference: FileSource | None = None,
    placement: Placement | None = None,
    force: bool = False,
    version: str = "",
    progress: Progress | None = None,
) -> Report:
    """Write the sum of adapters; see `add`.

    Args:
        ingredients: The adapter files and their strengths.
        output: Where to.
        rule: How many directions a layer of the sum gets; None: all, exactly.
        where: `PATTERN=S` for all of them, in order: each has to fit a layer of one at least.
        method: How coefficients are found; see `methods`.
        options: The method's own parameters.
        dtype: Of the factors; None: what holds all that a layer's inputs hold.
        format: How the result is named; None: as the first input is.
        architecture: Short name of the model's; None: told by the names.
        reference: The checkpoint that they are for, to find dotted names by.
        placement: Where to compute; None: the CPU.
        force: Whether the output may replace a file.
        version: Of lorakit, for the record.
        progress: Called after each layer.

    Raises:
        LoraOpsError: As `add`; or the output cannot, or must not, be written.
    """
    started = time.perf_counter()
    if not ingredients:
        raise ArgumentError("there is nothing to add; give one adapter or more")
    sources = [one.source for one in ingredients]
    if is_for_folder(output, format) and isinstance(output, Path):
        check_folder(output, paths_of(*sources, reference), force=force)
    elif format is None:
        check_written(output, paths_of(*sources, reference), sources[0], force=force)
    else:
        check_output(output, paths_of(*sources, reference), force=force)
    chosen = None if rule is None else parse_rank(rule)
    told = check_method(method, len(ingredients), **(options or {}))
    adapters = [decode(source) for source in sources]
    ingredients = _fitted(ingredients, adapters, where)
    terms = [
        Term(adapter, one.strengths(adapter.layers), one.source.name)
        for adapter, one in zip(adapters, ingredients, strict=True)
    ]
    scheme = format_named(format or terms[0].adapter.format)
    known = [one.target for one in parameters(reference).values()] if reference else []
    model = None if architecture is None else architecture_named(architecture)
    match = match_adapters(terms, scheme.name, known, model)
    has_alpha = keeps_alpha(output, scheme, match.keys)
    adding = Adding(chosen, method, told, dtype, has_alpha)
    taken = {key for roles in match.keys.values() for key in roles.values()}
    extras, notes = _extras(match.terms, taken)
    draft = Draft(output, scheme.name, sources, match.keys, extras, match.model, [reference], force)

    def describe(inputs: Sequence[Input], result: Result) -> dict[str, str]:
        record = [one.record(file) for one, file in zip(ingredients, inputs, strict=True)]
        entries = {"method": method} | {name: f"{value:g}" for name, value in told.items()}
        entries |= {} if chosen is None else {"rank": str(chosen)}
        names = " + ".join(f"{Path(one.file.name).stem} ({one.strength:g})" for one in record)
        operation = Operation("add", version, f"{method} of {names}", entries)
        return joined_metadata(record, operation, result)

    results = run_add(match, adding, placement=placement, progress=progress)
    notes += add_notes(match)
    return write_result(
        draft,
        results,
        describe,
        started=started,
        notes=lambda report: [*notes, *converted(report)],
    )


def _fitted(
    ingredients: Sequence[Ingredient], adapters: Sequence[Adapter], where: Sequence[str]
) -> list[Ingredient]:
    """The ingredients, each with those patterns that fit its adapter.

    Raises:
        ArgumentError: A pattern fits none of them.
    """
    fitting: list[list[str]] = [[*one.where] for one in ingredients]
    for entry in where:
        failures: list[ArgumentError] = []
        for own, adapter in zip(fitting, adapters, strict=True):
            try:
                parse_rules(adapter.layers, where=[entry])
                own.append(entry)
            except ArgumentError as error:
                failures.append(error)
        if len(failures) == len(adapters):
            raise failures[0]
    return [replace(one, where=own) for one, own in zip(ingredients, fitting, strict=True)]


def _extras(terms: Sequence[Term], taken: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """What belongs to no layer, of all inputs; of two that differ under one key, the first.

    Args:
        terms: The inputs.
        taken: Keys that layers of the result may have.
    """
    found: dict[str, Tensor] = {}
    notes: list[str] = []
    for term in terms:
        for key, tensor in term.adapter.extras.items():
            if key in taken:
                notes.append(f"`{key}` of {term.name} is left out: a layer has that key")
            elif not torch.equal(found.setdefault(key, tensor), tensor):
                notes.append(f"`{key}` of {term.name} is left out: an earlier input has another")
    return found, notes
