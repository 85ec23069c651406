"""Resize, scale and add from file to file."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .adapter import Adapter
from .add import Adding, add_notes, run_add
from .align import matched
from .architectures import architecture_named, parameters
from .base_weights import base_weights
from .budgets import Budget, parse_rule
from .changes import as_changes
from .devices import Placement
from .edit import EditReport, all_keys, converted
from .errors import ArgumentError
from .files import FileSource, Output, check_output
from .formats import decode, format_named
from .importance import importance
from .ingredients import Ingredient
from .inputs import paths_of
from .layers import Convention
from .metadata import Input, Operation, Result, Source, edited_metadata, joined_metadata
from .methods import check_method
from .models import recognised
from .outline import Outline
from .parallel import Progress
from .peft_folder import (
    check_folder,
    check_written,
    is_for_folder,
    keeps_alpha,
    write_result,
)
from .ranks import RankRule, parse_rank
from .report import Report
from .resize import Resizing, resize_notes, run_resize
from .rules import parse_rules
from .scale import run_scale
from .source import TensorSource
from .terms import Term
from .writing import Draft


def resize_file(
    source: FileSource,
    output: Output,
    rule: str | int | RankRule | Budget,
    *,
    alpha: float | None = None,
    dtype: torch.dtype | None = None,
    relative_to: FileSource | None = None,
    norm: str = "spectral",
    base: FileSource | None = None,
    dora: Convention = "paper",
    exact: bool = False,
    placement: Placement | None = None,
    force: bool = False,
    version: str = "",
    progress: Progress | None = None,
) -> Report:
    """Write an adapter at other ranks; see `resize`.

    Args:
        source: The adapter file.
        output: Where to.
        rule: See `ranks` and `budgets`; a size is that of the file as written.
        alpha: The number to store; None: the new rank.
        dtype: Of the factors; None: each layer's own.
        relative_to: The checkpoint whose weights a budget compares the changes with.
        norm: Of those weights: spectral or frobenius.
        base: The checkpoint that it was trained on, for kinds that are made from the weight.
        dora: Whose convention of those, where programs differ; see docs/kinds.md.
        exact: Cut those exactly, not within 1e-3 of the least error.
        placement: Where to compute; None: the CPU.
        force: Whether the output may replace a file.
        version: Of lorakit, for the record.
        progress: Called after each layer.

    Raises:
        LoraOpsError: As `resize`; or the output cannot, or must not, be written.
    """
    started = time.perf_counter()
    check_written(output, paths_of(source, relative_to, base), source, force=force)
    chosen = parse_rule(rule)
    if relative_to is not None and isinstance(chosen, RankRule):
        raise ArgumentError(
            f"rank rule `{chosen}` looks at one layer at a time, so weights to compare with change "
            "nothing; use a budget: size=, mean= or total_error="
        )
    adapter = decode(source)
    if base is not None:
        layers = decode(Outline(source)).layers
        weights = base_weights(adapter, layers, base, source.name)
        adapter = as_changes(adapter, layers, weights, dora, everything=False)
    draft = _draft(source, adapter, output, force, (relative_to, base))
    resizing = Resizing(
        chosen,
        alpha,
        dtype,
        importance(adapter.layers, relative_to, norm) if relative_to else {},
        overhead=draft.overhead,
        has_alpha=keeps_alpha(output, format_named(adapter.format), adapter.keys),
        exact=exact,
    )

    def describe(inputs: Sequence[Input], result: Result) -> dict[str, str]:
        told = {"rank": str(chosen)}
        told |= {} if alpha is None else {"alpha": f"{alpha:g}"}
        told |= {"relative_to": Path(relative_to.name).name, "norm": norm} if relative_to else {}
        told |= {} if base is None else {"base": Path(base.name).name, "dora": dora}
        operation = Operation("resize", version, _resized(result.report), told)
        return edited_metadata(Source(inputs[0], source.metadata), operation, result)

    results = run_resize(adapter, resizing, placement=placement, progress=progress)
    return write_result(
        draft,
        results,
        describe,
        started=started,
        notes=lambda report: resize_notes(resizing, report),
    )


def scale_file(
    ingredient: Ingredient,
    output: Output,
    *,
    force: bool = False,
    version: str = "",
    progress: Progress | None = None,
) -> Report:
    """Write an adapter at other strengths; see `scale`.

    Args:
        ingredient: The adapter file and its strengths.
        output: Where to.
        force: Whether the output may replace a file.
        version: Of lorakit, for the record.
        progress: Called after each layer.

    Raises:
        LoraOpsError: As `scale`; or the output cannot, or must not, be written.
    """
    started = time.perf_counter()
    source = ingredient.source
    check_written(output, paths_of(source), source, force=force)
    adapter = decode(source)
    factors = ingredient.strengths(adapter.layers)

    def describe(inputs: Sequence[Input], result: Result) -> dict[str, str]:
        record = ingredient.record(inputs[0])
        told = {"strength": f"{ingredient.strength:g}"}
        told |= {"blocks": record.blocks} if record.blocks else {}
        summary = f"scaled by {ingredient.strength:g}" + (
            f" ({record.blocks})" if record.blocks else ""
        )
        operation = Operation("scale", version, summary, told)
        return edited_metadata(Source(inputs[0], source.metadata), operation, result)

    has_alpha = keeps_alpha(output, format_named(adapter.format), adapter.keys)
    results = run_scale(adapter, factors, has_alpha=has_alpha, progress=progress)
    draft = _draft(source, adapter, output, force)
    return write_result(draft, results, describe, started=started)


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
    match = matched(terms, scheme.name, known, model)
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


def _draft(
    source: TensorSource,
    adapter: Adapter,
    output: Output,
    force: bool,
    others: Sequence[TensorSource | None] = (),
) -> Draft:
    return Draft(
        output,
        adapter.format,
        [source],
        all_keys(adapter),
        adapter.extras,
        recognised(adapter).certain,
        others,
        force,
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


def _resized(report: Report) -> str:
    """For the training comment: resized from 128 to 32."""
    layers = [one for one in report.layers if isinstance(one, EditReport) and not one.is_full]
    before = {one.was[0] for one in layers}
    after = {one.rank for one in layers}
    old, new = (str(*ranks) if len(ranks) == 1 else "dynamic" for ranks in (before, after))
    return f"resized from {old} to {new}"
