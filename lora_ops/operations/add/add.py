"""Add: several adapters as one, exactly by concatenation, or the best of a rank from the factors.

The sum of products is a product: `[c1 up1 | c2 up2] @ [down1; down2]`. Averaging or adding the
factors themselves is another thing, and wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from ...adapters.adapter import Adapter
from ...adapters.edited import (
    EditReport,
    check_not_empty,
    collect,
    converted,
)
from ...adapters.formats import format_named
from ...adapters.layers import Convention, Layer
from ...adapters.matching.align import Match, match_adapters
from ...adapters.matching.group import Group, Term
from ...elements import asked
from ...errors import ArgumentError
from ...linalg.ranks.rules import RankRule, parse_rank
from ...models.architectures import Architecture
from ...report import Report, counted
from ...run.devices import Placement, place
from ...run.job import Job, Outcome, Work
from ...run.stream import stream
from ...run.workers import Progress
from ...source import TensorSource
from ..methods import check_adding
from .apart import is_bulky, is_made
from .based import base_notes, check_factors, targets_of, with_base
from .kept import kept_notes, kept_whole
from .layer import Adding, added

# The most bytes that LoRAs as large as their weights may take without a rank being asked for.
_ROOM = 64_000_000
# Every LoKr has one of these roles.
_LOKR = frozenset(("w1", "w1_a"))
# Above this share of what a method makes of the elements a loss is told with the ways out.
_LOST = 0.3
#: Results that may wait: the writer works as long on one as a job takes, and sizes differ.
AHEAD = 4


def add(
    terms: Sequence[Term],
    rule: str | int | RankRule | None = None,
    *,
    method: str = "sum",
    parameters: Mapping[str, float | str | bool | tuple[float, ...]] | None = None,
    dtype: torch.dtype | None = None,
    format: str | None = None,
    architecture: Architecture | None = None,
    reference: Sequence[str] = (),
    keep_whole: Sequence[int] | None = None,
    base: TensorSource | None = None,
    dora: Convention = "paper",
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[Adapter, Report]:
    """Return the sum of adapters, all in memory, and its report.

    Ranks, alphas, dtypes, naming schemes and sets of layers may differ; a layer that one input
    alone holds is carried, times its strength.

    Args:
        terms: The adapters and their strengths.
        rule: How many directions a layer of the sum gets; None: all, exactly.
        method: How coefficients are found; see `methods`. They are in the report.
        parameters: The method's own parameters.
        dtype: Dtype of the factors; None: one that holds the numbers of all of a layer's inputs.
        format: How the result is named; None: as the first input is.
        architecture: Of the model that they are for; None: told by the names.
        reference: Canonical targets of a checkpoint, to find dotted names by.
        keep_whole: Places of terms that a method which makes factors does not see, and to whose result they
            are added; None: LoRAs that by their name or metadata distil a model into few steps.
        base: The checkpoint that they were trained on, for kinds that are made from the weight: what they
            make of it at their strengths is added. Names are found in it where there is no reference.
        dora: How to read such kinds where programs differ; see docs/kinds.md.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        progress: Called after each layer.

    Raises:
        ArgumentError: The method is unknown, or a layer has no name in the format.
        MismatchError: The inputs are for different models, or nothing is left.
        UnsupportedLayerError: A layer is made from the base weight, which is not given.
        LoraOpsError: The base is not the checkpoint that they are for.
        NonFiniteError: NaN or infinity in, or out of the range of the dtype.
    """
    scheme = format_named(format or terms[0].adapter.format)
    chosen = None if rule is None else parse_rank(rule)
    kept = kept_whole(terms, method, keep_whole)
    told = check_adding(
        method, len(terms) - len(kept), parameters or {}, recompresses=chosen is not None
    )
    adding = Adding(chosen, method, told, asked(dtype), scheme.keeps_alpha, kept, base is not None)
    terms = [with_base(term, base, dora, architecture) for term in terms]
    reference = reference or targets_of(base)
    match = match_adapters(terms, scheme.name, reference, architecture)
    work = add_work(match, adding)
    results = stream(work, place(device), ahead=AHEAD, progress=progress)
    adapter, report = collect(match.terms[0].adapter, results, format=scheme.name, keys=match.keys)
    notes = (*method_notes(adding, report), *kept_notes(terms, method, kept), *add_notes(match))
    notes += tuple(base_notes(match, report)) if adding.based else ()
    return adapter, replace(report, notes=(*notes, *converted(report)))


def add_work(match: Match, adding: Adding) -> Work[Group, Outcome[Layer]]:
    """Return the jobs of a sum, in the order of the groups, and how they are done.

    Args:
        match: The adapters, their strengths and their groups.
        adding: What is to be done.

    Raises:
        UnknownFormatError: An adapter has no layers.
        ArgumentError: The method does not go with the inputs, or the exact sum would be too large.
    """
    for term in match.terms:
        check_not_empty(term.adapter, term.name)
    if adding.based:
        check_factors(match.outline(), adding)
    if adding.rule is None:
        _check_room(match.outline(), reads_all=adding.based)
    jobs = [Job(group.target, group, alike=group.target) for group in match.groups]
    return Work(jobs, partial(_compute, match.terms, adding))


def _compute(
    terms: Sequence[Term], adding: Adding, groups: Sequence[Group], where: Placement
) -> list[Outcome[Layer]]:
    return [added(terms, group, adding, where) for group in groups]


def add_notes(match: Match) -> Iterator[str]:
    """Yield a note on layers that not all inputs have."""
    if len(match.terms) < 2:
        return
    members = Counter(group.members[0][0] for group in match.groups if len(group.members) == 1)
    for index, term in enumerate(match.terms):
        alone = members[index]
        if alone == len(term.adapter.layers):
            yield f"{term.name} shares no layer with another input"
        elif alone:
            yield f"{counted(alone, 'layer')} in {term.name} alone"


def method_notes(adding: Adding, report: Report) -> Iterator[str]:
    """Yield how near a method that makes factors came to the plain sum, and what a rank has no room for."""
    made = [one for one in report.layers if isinstance(one, EditReport) and one.cosine is not None]
    if not made:
        return
    energy = math.fsum(one.norm**2 for one in made)
    cosine = (
        math.fsum(one.norm**2 * (one.cosine or 0.0) for one in made) / energy if energy else 0.0
    )
    told = f"cosine with the plain sum {cosine:.3f}"
    if adding.parameters.get("scope") != "element":
        yield told
        return
    lost = math.sqrt(math.fsum(one.residual**2 for one in made) / energy) if energy else 0.0
    yield (
        f"{lost:.0%} of what `{adding.method}` makes of the elements has no room in the rank; {told}"
        + (
            "; on the cores, the scope `core`, it has a low rank by itself, and in a checkpoint all of it has room"
            if lost > _LOST
            else ""
        )
    )


def _check_room(match: Match, *, reads_all: bool) -> None:
    """Refuse exact sums that would be larger than the weights, before any work, from headers alone.

    Raises:
        ArgumentError: Says how large, and what to do instead.
    """
    found: dict[str, Layer] = {}
    for group in match.groups:
        live = [one for one in group.members if match.terms[one[0]].strength(one[1]) != 0]
        for index, target in live:
            term = match.terms[index]
            roles = term.adapter.keys.get(target)
            if roles is None or roles.keys() & _LOKR or reads_all:
                layer = term.layer(target)
                if is_made(layer) or (is_bulky(layer) and len(live) > 1):
                    found[group.target] = layer
    sides = [(layer.shape[0], math.prod(layer.shape[1:])) for layer in found.values()]
    size = sum(min(pair) * sum(pair) * 2 for pair in sides)
    if size <= _ROOM:
        return
    target, layer = next(iter(found.items()))
    raise ArgumentError(
        f"the exact sum of {counted(len(found), 'weight')} has no form smaller than the weight itself: "
        f"the first, `{target}`, is a {layer.title} of {sides[0][0]} x {sides[0][1]} in one input; as LoRA of "
        f"all directions they would take {size / 1e9:.3g} GB in 16 bits; say how many directions to "
        "keep, such as `rule=64` (`rule=65536` keeps all), or bake the inputs into their checkpoint",
        target=target,
    )
