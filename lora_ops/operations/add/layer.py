"""What becomes of one weight of a sum: the exact sum, the best of a rank, or what a method makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...adapters.edited import ZERO, edited, finite, skipped
from ...adapters.layers import Layer, ReshapedLayer, innermost, rewrapped
from ...adapters.matching.group import Group, Term, common_shape
from ...elements import Element
from ...linalg.ranks.rules import RankRule
from ...run.devices import Placement
from ...run.job import Outcome
from ..methods import METHODS, Value, coefficients
from ..methods.factored.table import FACTORED
from ..reasons import RANK_ZERO, STRENGTH_ZERO
from ..resize.layer import in_dtype
from .combine import Combination, concatenated, recompressed, side_by_side, stacked, summed
from .merged import merged

CANCELS = "the inputs cancel"
NOT_IN_LAST = "not in the last input"
# A sum whose norm is below this share of the inputs' norms is rounding.
_NOTHING = 1e-6
# Above this share, float32 inner products give the norm of a sum to 1e-4.
_CLEAR = 0.03


@dataclass(frozen=True, slots=True)
class Adding:
    """The request: what an addition is to do.

    Attributes:
        rule: How many directions a layer of the sum gets; None: all, exactly.
        method: A name in `METHODS` or `FACTORED`.
        parameters: The method's own parameters.
        element: What the numbers of the factors are to be; None: one that holds the numbers of all of a layer's inputs.
        has_alpha: Whether the result's format has a place for alpha.
        kept: Places of terms that a method which makes factors does not see: they are added as they are.
        based: Whether layers may be what others made of the base weight.
    """

    rule: RankRule | None = None
    method: str = "sum"
    parameters: Mapping[str, Value] = field(default_factory=dict[str, Value])
    element: Element | None = None
    has_alpha: bool = True
    kept: frozenset[int] = frozenset()
    based: bool = False

    def makes(self, shape: Sequence[int]) -> bool:
        """Whether the method makes something else of a weight than a combination of the changes.

        What has one axis has no directions: methods that are about those add it.
        """
        known = FACTORED.get(self.method)
        return known is not None and (len(shape) > 1 or known.element is not None)

    @property
    def is_of_last(self) -> bool:
        """Whether it gives a part of the last input."""
        return self.method in METHODS and METHODS[self.method].of_last

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that is asked for, as torch has it."""
        return self.element.dtype if self.element else None


@dataclass(frozen=True, slots=True, eq=False)
class _Input:
    """One input's layer of a group."""

    index: int
    target: str
    layer: Layer
    strength: float


def added(terms: Sequence[Term], group: Group, adding: Adding, where: Placement) -> Outcome[Layer]:
    """Add the changes of one weight.

    Args:
        terms: The adapters and their strengths.
        group: Which of their layers change this weight.
        adding: What is to be done.
        where: Where to compute.

    Raises:
        WeightShapeError: Two inputs change weights of different shapes under one name.
        NonFiniteError: NaN or infinity in, or out of the range of the dtype.
        UnsupportedLayerError: A method that needs factors meets a layer that has none.
    """
    inputs = [
        _Input(index, target, terms[index].layer(target), terms[index].strength(target))
        for index, target in group.members
    ]
    first = inputs[0].layer
    shape = common_shape([one.layer for one in inputs], group.members, terms)
    live = [at for at, one in enumerate(inputs) if one.strength != 0]
    if not live:
        return skipped(group.target, first, STRENGTH_ZERO, 0.0)
    if adding.is_of_last and inputs[-1].index != len(terms) - 1:
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
    found = _coefficients(adding, gram, strengths)
    norm = float((found @ gram @ found).clamp(min=0).sqrt())
    seen = torch.tensor([one.index not in adding.kept for one in inputs])
    made = adding.makes(shape) and int((found * squares * seen).count_nonzero()) > 1
    if not made and norm <= _NOTHING * float(found.abs() @ squares.clamp(min=0).sqrt()):
        return skipped(group.target, first, CANCELS if bool(squares.any()) else ZERO, norm)
    used = [at for at in live if found[at] != 0 and squares[at] > 0]
    sum_ = Combination(
        group.target,
        shape,
        [inputs[at].layer for at in used],
        found[used].tolist(),
        stack if used == live else stacked([inputs[at].layer for at in used], where),
    )
    if made:
        picked = [inputs[at].index for at in used]
        result, norm, residual, cosine = _merged(sum_, adding, picked, where)
    else:
        cosine = None
        lossless = _lossless(sum_, adding)
        result = lossless or _carried(sum_, adding, group.keys) or _rounded(sum_, adding)
        if result is not None and not isinstance(result, ReshapedLayer):
            result = rewrapped(result, *sum_.layers)
        residual = 0.0 if lossless or result is None else sum_.missed(result)
    if result is None:
        return skipped(group.target, first, RANK_ZERO, norm)
    members = {one.index: at for at, one in enumerate(inputs)}
    places = [members.get(index) for index in range(len(terms))]
    return edited(
        group.target,
        result,
        norm=norm,
        residual=residual,
        was=tuple(0 if at is None else inputs[at].layer.rank for at in places),
        coefficients=tuple(0.0 if at is None else float(found[at]) for at in places),
        made_of=sum_.layers,
        cosine=cosine,
    )


def _coefficients(adding: Adding, gram: Tensor, strengths: Tensor) -> Tensor:
    """What each change counts by: a method that makes factors takes the strengths as they are."""
    if adding.method in FACTORED:
        return strengths
    numbers = {name: float(str(value)) for name, value in adding.parameters.items()}
    return coefficients(adding.method, gram, strengths, **numbers)


def _merged(
    sum_: Combination, adding: Adding, picked: Sequence[int], where: Placement
) -> tuple[Layer | None, float, float, float]:
    """What a method makes, its norm, what it misses, and its cosine with the sum."""
    kept = [at for at, index in enumerate(picked) if index in adding.kept]
    # A parameter that differs by term has a number for each term that the method sees.
    places = [i - sum(k < i for k in adding.kept) for i in picked if i not in adding.kept]
    own = {
        name: tuple(value[at] for at in places) if isinstance(value, tuple) else value
        for name, value in adding.parameters.items()
    }
    found = merged(
        *(sum_, adding.method, own, adding.rule, adding.dtype, where),
        has_alpha=adding.has_alpha,
        kept=kept,
    )
    layer = None if found.layer is None else rewrapped(found.layer, *sum_.layers)
    return layer, found.norm, found.residual, found.cosine


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
