"""The plan of a sum: what will be done to which weight, known from headers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch

from ...adapters.adapter import Adapter
from ...adapters.edited import converted
from ...adapters.formats import decode, format_named
from ...adapters.layers import Convention, FullLayer, Layer, MadeLayer, innermost
from ...adapters.matching.align import Match, match_adapters
from ...adapters.matching.group import Term, common_shape
from ...adapters.metadata import Input, Operation, Result, joined_metadata
from ...adapters.strengths.ingredient import Ingredient
from ...adapters.strengths.rules import parse_rules
from ...elements import Element, asked, loadable_by_all
from ...errors import ArgumentError
from ...files import Output, check_output
from ...linalg.ranks.rules import RankRule, parse_rank
from ...models.architectures import architecture_named
from ...report import Report, Skip
from ...run.inputs import paths_of
from ...source import TensorSource
from ..edit import EditPlan, Foreseen, planned_work
from ..methods import Value, check_adding
from ..output import Draft
from ..peft_folder import check_folder, check_no_experts, check_written, is_for_folder, keeps_alpha
from ..preview import PlannedLayer, planned_layer, planned_skip, stored_size
from ..reasons import RANK_ZERO, STRENGTH_ZERO
from .add import AHEAD, add_notes, add_work, method_notes
from .apart import is_made
from .based import base_notes, targets_of, with_base
from .extras import Extras, extras_of
from .kept import kept_notes, kept_whole
from .layer import NOT_IN_LAST, Adding

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AddOptions(TypedDict, total=False):
    """What an addition from files to a file can be told beside its rule.

    Attributes:
        where: `PATTERN=S` for all of them, in order: each has to fit a layer of one at least.
        method: How coefficients are found: `sum`, which is the default, and others; see `methods`.
        options: The method's own parameters.
        dtype: Of the factors; None: one that holds the numbers of all of a layer's inputs.
        format: How the result is named; None: as the first input is.
        architecture: Short name of the model's; None: told by the names.
        reference: The checkpoint that they are for, to find dotted names by.
        force: Whether the output may replace a file.
        keep_whole: Places of ingredients that a method which makes factors does not see, and to whose result
            they are added; None: those that by their name or metadata distil a model into few steps.
        base: The checkpoint that they were trained on, for kinds that are made from the weight: what they
            make of it at their strengths is added.
        dora: How to read such kinds where programs differ: paper, which is the default, or comfy; see
            docs/kinds.md.
    """

    where: Sequence[str]
    method: str
    options: Mapping[str, float | str | bool | tuple[float, ...]] | None
    dtype: torch.dtype | Element | None
    format: str | None
    architecture: str | None
    reference: TensorSource | None
    force: bool
    keep_whole: Sequence[int] | None
    base: TensorSource | None
    dora: Convention


def plan_add_files(
    ingredients: Sequence[Ingredient],
    output: Output,
    rule: str | int | RankRule | None = None,
    **options: Unpack[AddOptions],
) -> EditPlan:
    """Check everything that can be checked before the work begins, and plan it.

    Args:
        ingredients: The adapter files and their strengths.
        output: Where to.
        rule: How many directions a layer of the sum gets; None: all, exactly.
        **options: See `AddOptions`.

    Raises:
        LoraOpsError: As `add`, as far as headers tell; or the output cannot, or must not, be
            written.
    """
    if not ingredients:
        raise ArgumentError("there is nothing to add; give one adapter or more")
    sources = [one.source for one in ingredients]
    format, base = options.get("format"), options.get("base")
    reference, dora = options.get("reference"), options.get("dora", "paper")
    read = paths_of(*sources, reference, base)
    force, method = options.get("force", False), options.get("method", "sum")
    if is_for_folder(output, format) and isinstance(output, Path):
        check_folder(output, read, force=force)
    elif format is None:
        check_written(output, read, sources[0], force=force)
    else:
        for source in sources:
            check_no_experts(source)
        check_output(output, read, force=force)
    chosen = None if rule is None else parse_rank(rule)
    given = options.get("options") or {}
    adapters = [decode(source) for source in sources]
    ingredients = _fitted(ingredients, adapters, options.get("where", ()))
    terms = [
        Term(adapter, one.strengths(adapter.layers), one.source.name)
        for adapter, one in zip(adapters, ingredients, strict=True)
    ]
    kept = kept_whole(terms, method, options.get("keep_whole"))
    told = check_adding(method, len(terms) - len(kept), given, recompresses=chosen is not None)
    scheme = format_named(format or terms[0].adapter.format)
    known = targets_of(reference or base)
    architecture = options.get("architecture")
    model = None if architecture is None else architecture_named(architecture)
    terms = [with_base(term, base, dora, model) for term in terms]
    match = match_adapters(terms, scheme.name, known, model)
    has_alpha = keeps_alpha(output, scheme, match.keys)
    adding = Adding(
        chosen, method, told, asked(options.get("dtype")), has_alpha, kept, base is not None
    )
    taken = {key for roles in match.keys.values() for key in roles.values()}
    extras = extras_of(match.terms, taken)
    settings = {"method": method} | {name: _spelled(value) for name, value in told.items()}
    settings |= {} if chosen is None else {"rank": str(chosen)}
    whole = [Path(terms[at].name).stem for at in sorted(kept)]
    settings |= {"keep_whole": ", ".join(whole)} if whole else {}
    settings |= {} if base is None else {"base": Path(base.name).name, "dora": dora}
    return EditPlan(
        Draft(
            output, scheme.name, sources, match.keys, extras, match.model, [reference, base], force
        ),
        partial(planned_work, add_work(match, adding)),
        partial(_describe, ingredients, method, settings),
        partial(foresee_add, match, adding),
        f"{method}, {'exact' if chosen is None else f'rank rule {chosen}'}",
        settings,
        [f"{Path(one.source.name).name} ({one.strength:g})" for one in ingredients],
        partial(_notes, extras, match, adding),
        AHEAD,
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


def _describe(
    ingredients: Sequence[Ingredient],
    method: str,
    settings: Mapping[str, str],
    version: str,
    inputs: Sequence[Input],
    result: Result,
) -> dict[str, str]:
    record = [one.record(file) for one, file in zip(ingredients, inputs, strict=True)]
    names = " + ".join(f"{Path(one.file.name).stem} ({one.strength:g})" for one in record)
    operation = Operation("add", version, f"{method} of {names}", settings)
    return joined_metadata(record, operation, result)


def _spelled(value: Value) -> str:
    """A parameter as it is written down."""
    if isinstance(value, tuple):
        return " ".join(f"{one:g}" for one in value)
    return value if isinstance(value, str) else f"{value:g}"


def _notes(extras: Extras, match: Match, adding: Adding, report: Report) -> Iterator[str]:
    yield from method_notes(adding, report)
    yield from kept_notes(match.terms, adding.method, adding.kept)
    yield from extras.notes()
    yield from add_notes(match)
    yield from base_notes(match, report) if adding.based else ()
    yield from converted(report)


def foresee_add(match: Match, adding: Adding) -> Foreseen:
    """Say what will become of the weights, from headers alone.

    Args:
        match: The adapters, their strengths and their groups.
        adding: What is to be done.

    Raises:
        UnsupportedLayerError: A layer is made from the base weight, which is not given.
        WeightShapeError: Two inputs change weights of different shapes under one name.
    """
    notes = tuple(add_notes(match))
    match = match.outline()
    planned: list[PlannedLayer] = []
    skips: list[Skip] = []
    size = 0
    for group in match.groups:
        members = [(match.terms[index], target) for index, target in group.members]
        layers = [term.layer(target) for term, target in members]
        shape = common_shape(layers, group.members, match.terms)
        live = [
            layer
            for layer, (term, target) in zip(layers, members, strict=True)
            if term.strength(target) != 0
        ]
        last = group.members[-1][0] == len(match.terms) - 1
        rank, reason = 0, ""
        if not live:
            reason = STRENGTH_ZERO
        elif adding.is_of_last and not last:
            reason = NOT_IN_LAST
        else:
            rank = _most(live, shape, adding.rule)
            reason = "" if rank else RANK_ZERO
        if reason:
            skips.append(planned_skip(group.target, layers[0], reason))
            continue
        done = f"sum of {len(live)}" if len(live) > 1 else "carried"
        planned.append(planned_layer(group.target, max(live, key=_axes), done, rank))
        size += _size(live, shape, rank, adding.element)
    return Foreseen(planned, size, skips, notes)


def _axes(layer: Layer) -> int:
    return len(layer.shape)


def _most(layers: Sequence[Layer], shape: Sequence[int], rule: RankRule | None) -> int:
    """The largest rank that a weight of the sum can get."""
    ranks = [_full(shape) if is_made(layer) else layer.rank for layer in layers]
    full = min(sum(ranks), _full(shape))
    if rule is None or all(isinstance(innermost(layer), FullLayer) for layer in layers):
        return full
    own = rule.for_kernel(tuple(shape[2:]))
    if own.leaves_out:
        return 0
    return own.first_guess(full) if own.kind == "rank" else min(full, own.most or full)


def _size(layers: Sequence[Layer], shape: Sequence[int], rank: int, element: Element | None) -> int:
    """Bytes of a weight of the sum, at most."""
    wide = element or loadable_by_all(layer.element for layer in layers)
    if all(isinstance(innermost(layer), FullLayer) for layer in layers):
        return math.prod(shape) * wide.bits // 8
    around = [one for one in map(_larger_weight, layers) if one]
    factors = rank * (shape[0] + math.prod(shape[1:])) * wide.bits // 8 + 4 + max(around, default=0)
    if len(layers) > 1 or isinstance(innermost(layers[0]), MadeLayer):
        return factors
    return max(factors, stored_size(layers[0], element))


def _larger_weight(layer: Layer) -> int:
    """Bytes of the shape that a layer says its weight grows to."""
    role = layer.tensors().get("reshape_weight")
    return 0 if role is None else role.nbytes


def _full(shape: Sequence[int]) -> int:
    """All directions that a weight has."""
    return min(shape[0], math.prod(shape[1:])) if len(shape) > 1 else 1
