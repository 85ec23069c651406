"""Add: several adapters as one, exactly by concatenation, or the best of a rank from the factors.

The sum of products is a product: `[c1 up1 | c2 up2] @ [down1; down2]`. Averaging or adding the
factors themselves is another thing, and wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ...adapters.adapter import Adapter
from ...adapters.edited import (
    ZERO,
    check_not_empty,
    collect,
    converted,
    edited,
    finite,
    skipped,
)
from ...adapters.formats import format_named
from ...adapters.layers import Layer, ReshapedLayer, innermost, rewrapped
from ...adapters.matching.align import Match, match_adapters
from ...adapters.matching.group import Group, Term, common_shape
from ...errors import ArgumentError
from ...linalg.ranks.rules import RankRule, parse_rank
from ...models.architectures import Architecture
from ...report import Report, counted
from ...run.devices import Placement, place
from ...run.job import Job, Outcome, Work
from ...run.stream import stream
from ...run.workers import Progress
from ..methods import METHODS, check_method, coefficients
from ..reasons import RANK_ZERO, STRENGTH_ZERO
from ..resize.layer import in_dtype
from .apart import is_bulky
from .combine import Combination, concatenated, recompressed, side_by_side, stacked, summed

CANCELS = "the inputs cancel"
NOT_IN_LAST = "not in the last input"
# A sum whose norm is below this share of the inputs' norms is rounding.
_NOTHING = 1e-6
# Above this share, float32 inner products give the norm of a sum to 1e-4.
_CLEAR = 0.03
# The most bytes that LoRAs as large as their weights may take without a rank being asked for.
_ROOM = 64_000_000
# Every LoKr has one of these roles.
_LOKR = frozenset(("w1", "w1_a"))
#: Results that may wait: the writer works as long on one as a job takes, and sizes differ.
AHEAD = 4


@dataclass(frozen=True, slots=True)
class Adding:
    """The request: what an addition is to do.

    Attributes:
        rule: How many directions a layer of the sum gets; None: all, exactly.
        method: A name in `methods.METHODS`.
        parameters: The method's own parameters.
        dtype: Dtype of the factors; None: one that holds the numbers of all of a layer's inputs.
        has_alpha: Whether the result's format has a place for alpha.
    """

    rule: RankRule | None = None
    method: str = "sum"
    parameters: Mapping[str, float] = field(default_factory=dict[str, float])
    dtype: torch.dtype | None = None
    has_alpha: bool = True


def add(
    terms: Sequence[Term],
    rule: str | int | RankRule | None = None,
    *,
    method: str = "sum",
    parameters: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
    format: str | None = None,
    architecture: Architecture | None = None,
    reference: Sequence[str] = (),
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
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        progress: Called after each layer.

    Raises:
        ArgumentError: The method is unknown, or a layer has no name in the format.
        MismatchError: The inputs are for different models, or nothing is left.
        UnsupportedLayerError: A layer is made from the base weight.
        NonFiniteError: NaN or infinity in, or out of the range of the dtype.
    """
    scheme = format_named(format or terms[0].adapter.format)
    chosen = None if rule is None else parse_rank(rule)
    adding = Adding(chosen, method, parameters or {}, dtype, scheme.keeps_alpha)
    match = match_adapters(terms, scheme.name, reference, architecture)
    work = add_work(match, adding)
    results = stream(work, place(device), ahead=AHEAD, progress=progress)
    adapter, report = collect(match.terms[0].adapter, results, format=scheme.name, keys=match.keys)
    return adapter, replace(report, notes=(*add_notes(match), *converted(report)))


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
    check_method(adding.method, len(match.terms), **adding.parameters)
    if adding.rule is None:
        _check_room(match.outline())
    jobs = [Job(group.target, group, alike=group.target) for group in match.groups]
    return Work(jobs, partial(_compute, match.terms, adding))


def _compute(
    terms: Sequence[Term], adding: Adding, groups: Sequence[Group], where: Placement
) -> list[Outcome[Layer]]:
    return [_added(terms, group, adding, where) for group in groups]


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


def _check_room(match: Match) -> None:
    """Refuse exact sums that would be larger than the weights, before any work, from headers alone.

    Raises:
        ArgumentError: Says how large, and what to do instead.
    """
    found: dict[str, Layer] = {}
    for group in match.groups:
        live = [one for one in group.members if match.terms[one[0]].strength(one[1]) != 0]
        for index, target in live if len(live) > 1 else ():
            term = match.terms[index]
            roles = term.adapter.keys.get(target)
            if roles is None or roles.keys() & _LOKR:
                layer = term.layer(target)
                if is_bulky(layer):
                    found[group.target] = layer
    sides = [(layer.shape[0], math.prod(layer.shape[1:])) for layer in found.values()]
    size = sum(min(pair) * sum(pair) * 2 for pair in sides)
    if size <= _ROOM:
        return
    target = next(iter(found))
    raise ArgumentError(
        f"the exact sum of {counted(len(found), 'weight')} has no form smaller than the weight itself: "
        f"the first, `{target}`, is a LoKr of {sides[0][0]} x {sides[0][1]} in one input; as LoRA of "
        f"all directions they would take {size / 1e9:.3g} GB in 16 bits; say how many directions to "
        "keep, such as `rule=64` (`rule=65536` keeps all), or bake the inputs into their checkpoint",
        target=target,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Input:
    """One input's layer of a group."""

    index: int
    target: str
    layer: Layer
    strength: float


def _added(terms: Sequence[Term], group: Group, adding: Adding, where: Placement) -> Outcome[Layer]:
    inputs = [
        _Input(index, target, terms[index].layer(target), terms[index].strength(target))
        for index, target in group.members
    ]
    first = inputs[0].layer
    shape = common_shape([one.layer for one in inputs], group.members, terms)
    live = [at for at, one in enumerate(inputs) if one.strength != 0]
    if not live:
        return skipped(group.target, first, STRENGTH_ZERO, 0.0)
    if METHODS[adding.method].of_last and inputs[-1].index != len(terms) - 1:
        return skipped(group.target, first, NOT_IN_LAST, 0.0)
    stack = stacked([inputs[at].layer for at in live], where)
    known = stack.gram()
    if adding.method != "sum" or not _is_clear(known, [inputs[at].strength for at in live]):
        stack = stack.exact()
        known = stack.gram()
    # An input of strength 0 is a change of zero: to a method this differs from no input.
    gram = torch.zeros((len(inputs), len(inputs)), dtype=torch.float64)
    gram[torch.tensor(live).unsqueeze(1), live] = known
    squares = gram.diagonal()
    for one, square in zip(inputs, squares, strict=True):
        finite(square, one.target, one.layer, terms[one.index].name)
    strengths = torch.tensor([one.strength for one in inputs], dtype=torch.float64)
    found = coefficients(adding.method, gram, strengths, **adding.parameters)
    norm = float((found @ gram @ found).clamp(min=0).sqrt())
    if norm <= _NOTHING * float(found.abs() @ squares.clamp(min=0).sqrt()):
        return skipped(group.target, first, CANCELS if bool(squares.any()) else ZERO, norm)
    used = [at for at in live if found[at] != 0 and squares[at] > 0]
    sum_ = Combination(
        group.target,
        shape,
        [inputs[at].layer for at in used],
        found[used].tolist(),
        stack if used == live else stacked([inputs[at].layer for at in used], where),
    )
    lossless = _lossless(sum_, adding)
    whole = lossless or _carried(sum_, adding, group.keys) or _rounded(sum_, adding)
    if whole is None:
        return skipped(group.target, first, RANK_ZERO, norm)
    result = whole if isinstance(whole, ReshapedLayer) else rewrapped(whole, *sum_.layers)
    members = {one.index: at for at, one in enumerate(inputs)}
    places = [members.get(index) for index in range(len(terms))]
    return edited(
        group.target,
        result,
        norm=norm,
        residual=0.0 if lossless else sum_.missed(result),
        was=tuple(0 if at is None else inputs[at].layer.rank for at in places),
        coefficients=tuple(0.0 if at is None else float(found[at]) for at in places),
        made_of=sum_.layers,
    )


def _is_clear(gram: Tensor, strengths: Sequence[float]) -> bool:
    """Whether a sum is large enough for float32 to give its norm; False if NaN or infinite."""
    factors = torch.tensor(strengths, dtype=torch.float64)
    size = factors.abs() @ gram.diagonal().clamp(min=0).sqrt()
    return bool(factors @ gram @ factors > (_CLEAR * size) ** 2)


def _lossless(sum_: Combination, adding: Adding) -> Layer | None:
    """The sum in a form in which no number has to be rounded; None where there is none."""
    if not _has_room(sum_, adding.rule):
        return None
    return side_by_side(sum_, adding.dtype, has_alpha=adding.has_alpha)


def _carried(sum_: Combination, adding: Adding, keys: Mapping[str, str]) -> Layer | None:
    """The only layer, as it is stored, if its kind takes less room than a LoRA would."""
    if len(sum_.layers) > 1 or adding.rule is not None:
        return None
    (layer,), (coefficient,) = sum_.layers, sum_.coefficients
    plain = innermost(layer)
    if not plain.is_compact or layer.tensors().keys() - keys:
        return None
    carried = plain.times(sum_.target, coefficient, has_alpha=True)
    return rewrapped(in_dtype(sum_.target, carried, adding.dtype), layer)


def _rounded(sum_: Combination, adding: Adding) -> Layer | None:
    """The sum, rounded, at the rank that is asked for; None for rank 0."""
    whole = summed(sum_, adding.dtype)
    if whole is None and _has_room(sum_, adding.rule):
        whole = concatenated(sum_, adding.dtype, has_alpha=adding.has_alpha)
    if whole is None:
        whole = recompressed(sum_, adding.rule, adding.dtype, has_alpha=adding.has_alpha)
    return whole


def _has_room(sum_: Combination, rule: RankRule | None) -> bool:
    """Whether the ranks of all inputs together are no more than is asked for."""
    if rule is None:
        return True
    own = rule.for_kernel(sum_.shape[2:])
    return own.kind == "rank" and own.value > 0 and own.first_guess(sum_.rank) == sum_.rank
