"""Compare: how alike the changes of two adapters are, from their factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ..adapters.adapter import Adapter
from ..adapters.edited import check_not_empty, finite, kind_of
from ..adapters.formats import CONTROL, component
from ..adapters.layers import innermost
from ..adapters.matching.align import Match, match_adapters
from ..adapters.matching.group import Group, Term, common_shape
from ..errors import MismatchError
from ..operations.add.apart import apart
from ..operations.add.combine import stacked
from ..run.devices import Placement
from ..run.job import Job, Work
from ..run.stream import stream
from ..run.workers import Progress

# A squared distance below this share of the squared norms is their rounding.
_SEEN = 1e-15


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """One weight, as two adapters change it.

    Attributes:
        target: Its name in the first adapter that has it.
        component: unet or te.
        kind: linear, conv 3x3, ...
        ranks: Its rank in the first and in the second; 0 where one does not hold it.
        norms: Frobenius norms of the two changes; 0 where one does not hold it.
        inner: Their inner product.
    """

    target: str
    component: str
    kind: str
    ranks: tuple[int, int]
    norms: tuple[float, float]
    inner: float

    @property
    def cosine(self) -> float:
        """Cosine of the two changes, from -1 to 1; 0 where one is zero."""
        return _cosine(self.inner, *self.norms)

    @property
    def distance(self) -> float:
        """Norm of the second change less the first, as a share of the first's norm."""
        return _distance(self.inner, *self.norms)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How alike two adapters are.

    Attributes:
        layers: Every weight that either changes.
    """

    layers: tuple[LayerComparison, ...]

    @property
    def norms(self) -> tuple[float, float]:
        """Frobenius norms of both, over all layers."""
        first, second = zip(*(layer.norms for layer in self.layers), strict=True)
        return math.hypot(*first), math.hypot(*second)

    @property
    def cosine(self) -> float:
        """Cosine of the changes over all layers, also those that one adapter alone has."""
        return _cosine(math.fsum(layer.inner for layer in self.layers), *self.norms)

    @property
    def distance(self) -> float:
        """Distance over all layers: 0 for two files that do the same."""
        return _distance(math.fsum(layer.inner for layer in self.layers), *self.norms)

    @property
    def shared(self) -> int:
        """How many weights both change."""
        return sum(0 not in layer.ranks for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: totals first, then every layer."""
        return {
            "cosine": self.cosine,
            "distance": self.distance,
            "norms": self.norms,
            "shared": self.shared,
            "layers": [
                {**asdict(layer), "cosine": layer.cosine, "distance": layer.distance}
                for layer in self.layers
            ],
        }


def compare(
    first: Adapter,
    second: Adapter,
    *,
    names: tuple[str, str] = ("the first", "the second"),
    progress: Progress | None = None,
) -> Comparison:
    """Compare the changes of two adapters, across naming schemes, ranks and dtypes.

    Of Control-LoRAs the factors are compared, not what they hold whole.

    Args:
        first: The adapter that the distance is measured from.
        second: The other adapter.
        names: What messages call them.
        progress: Called after each layer.

    Raises:
        MismatchError: They are for different models, or one is a Control-LoRA, and the other is none.
        UnsupportedLayerError: A layer is made from the base weight.
        NonFiniteError: NaN or infinity in a factor.
    """
    match = matched((first, second), names)
    jobs = [Job(group.target, group, alike=group.target) for group in match.groups]
    work = Work(jobs, partial(_compute, match.terms))
    return Comparison(tuple(stream(work, progress=progress)))


def matched(adapters: Sequence[Adapter], names: Sequence[str]) -> Match:
    """Return which layers of adapters change one weight.

    Args:
        adapters: Two or more.
        names: What messages call them.

    Raises:
        MismatchError: They are for different models, or one is a Control-LoRA, and another is none.
        UnknownFormatError: One has no layers.
    """
    kinds = [one.format == CONTROL.name for one in adapters]
    if any(kinds) and not all(kinds):
        control, other = names[kinds.index(True)], names[kinds.index(False)]
        raise MismatchError(
            f"{control} is a Control-LoRA, which changes a ControlNet, and {other} is not; give two of a kind"
        )
    terms = [Term(one, {}, name) for one, name in zip(adapters, names, strict=True)]
    for term in terms:
        check_not_empty(term.adapter, term.name)
    return match_adapters(terms)


def _compute(terms: Sequence[Term], groups: Sequence[Group], _: Placement) -> list[LayerComparison]:
    return [_compared(terms, group) for group in groups]


def _compared(terms: Sequence[Term], group: Group) -> LayerComparison:
    found = [terms[index].layer(target) for index, target in group.members]
    common_shape(found, group.members, terms)
    is_lokr = any(innermost(layer).kronecker() is not None for layer in found)
    gram = apart(found).gram() if is_lokr else stacked(found).exact().gram()
    ranks, norms = [0, 0], [0.0, 0.0]
    for at, ((index, target), layer) in enumerate(zip(group.members, found, strict=True)):
        square = finite(gram[at, at], target, layer, terms[index].name)
        ranks[index], norms[index] = layer.rank, math.sqrt(max(square, 0.0))
    return LayerComparison(
        target=group.target,
        component=component(group.target),
        kind=kind_of(group.target, found[0]),
        ranks=(ranks[0], ranks[1]),
        norms=(norms[0], norms[1]),
        inner=float(gram[0, 1]) if len(found) == 2 else 0.0,
    )


def _cosine(inner: float, first: float, second: float) -> float:
    return max(-1.0, min(1.0, inner / (first * second))) if first and second else 0.0


def _distance(inner: float, first: float, second: float) -> float:
    square = first**2 + second**2 - 2 * inner
    if square <= _SEEN * (first**2 + second**2):
        return 0.0
    return math.sqrt(square) / first if first else math.inf
