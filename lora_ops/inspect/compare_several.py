"""Compare several adapters: cosines of all pairs, and where they are in each other's way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..adapters.adapter import Adapter
from ..adapters.edited import finite, kind_of
from ..adapters.formats import component
from ..adapters.layers import innermost
from ..adapters.matching.group import Group, Term, common_shape
from ..adapters.strengths.blocks import locate
from ..errors import ArgumentError
from ..operations.add.apart import apart
from ..operations.add.combine import Stack, stacked
from ..run.devices import Placement
from ..run.job import Job, Work
from ..run.stream import stream
from ..run.workers import Progress
from .compare import matched
from .conflict import Conflict, conflict_of, together

_REST = "rest"


@dataclass(frozen=True, slots=True)
class LayerConflict:
    """One weight, as several adapters change it.

    Attributes:
        target: Its name in the first adapter that has it.
        component: unet or te.
        kind: linear, conv 3x3, ...
        ranks: Its rank in each; 0 where one does not hold it.
        conflict: How the changes are in each other's way.
    """

    target: str
    component: str
    kind: str
    ranks: tuple[int, ...]
    conflict: Conflict


@dataclass(frozen=True, slots=True)
class SeveralComparison:
    """How alike several adapters are, and where they are in each other's way.

    Attributes:
        names: What they are called.
        share: Of the elements of a change, how many count as large.
        layers: Every weight that one of them changes.
    """

    names: tuple[str, ...]
    share: float
    layers: tuple[LayerConflict, ...]

    @property
    def total(self) -> Conflict:
        """Over all weights."""
        return together(layer.conflict for layer in self.layers)

    @property
    def shared(self) -> int:
        """How many weights all of them change."""
        return sum(0 not in layer.ranks for layer in self.layers)

    def blocks(self) -> dict[str, Conflict]:
        """By block, in order of execution: `IN04`, `M00`, `D12`; then `rest`, which is all where none is known."""
        found = locate([layer.target for layer in self.layers])
        of = {
            name: block.label
            for block, names in (found.modules.items() if found else ())
            for name in names
        }
        groups: dict[str, list[Conflict]] = {}
        for layer in self.layers:
            groups.setdefault(of.get(layer.target, _REST), []).append(layer.conflict)
        order = [label for label in (*dict.fromkeys(of.values()), _REST) if label in groups]
        return {label: together(groups[label]) for label in order}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: totals first, then blocks, then every layer."""
        return {
            "names": self.names,
            "share": self.share,
            "shared": self.shared,
            **self.total.to_dict(),
            "blocks": {label: one.to_dict() for label, one in self.blocks().items()},
            "layers": [
                {
                    "target": layer.target,
                    "component": layer.component,
                    "kind": layer.kind,
                    "ranks": layer.ranks,
                    **layer.conflict.to_dict(),
                }
                for layer in self.layers
            ],
        }


def compare_several(
    adapters: Sequence[Adapter],
    *,
    names: Sequence[str] = (),
    share: float = 0.2,
    progress: Progress | None = None,
) -> SeveralComparison:
    """Compare the changes of several adapters, each at strength 1, across naming schemes, ranks and dtypes.

    Cosines, norms and energies are exact from the factors. Signs are of the elements of the products, of
    which a million are looked at in large weights.

    Args:
        adapters: Two or more.
        names: What messages and the result call them; none: their numbers.
        share: Of the elements of a change, how many count as large: above 0, up to 1.
        progress: Called after each layer.

    Raises:
        ArgumentError: There is but one adapter, or the share is none.
        MismatchError: They are for different models, or one is a Control-LoRA, and another is none.
        UnsupportedLayerError: A layer is made from the base weight.
        NonFiniteError: NaN or infinity in a factor.
    """
    if len(adapters) < 2:
        raise ArgumentError(f"a comparison is of two adapters or more, not of {len(adapters)}")
    if not 0 < share <= 1:
        raise ArgumentError(f"a share of {share:g} of the elements: give a number above 0, up to 1")
    called = tuple(names) or tuple(f"adapter {at}" for at in range(1, len(adapters) + 1))
    match = matched(adapters, called)
    jobs = [Job(group.target, group, alike=group.target) for group in match.groups]
    work = Work(jobs, partial(_compute, match.terms, share))
    return SeveralComparison(called, share, tuple(stream(work, progress=progress)))


def _compute(
    terms: Sequence[Term], share: float, groups: Sequence[Group], _: Placement
) -> list[LayerConflict]:
    return [_compared(terms, share, group) for group in groups]


def _compared(terms: Sequence[Term], share: float, group: Group) -> LayerConflict:
    found = [terms[index].layer(target) for index, target in group.members]
    common_shape(found, group.members, terms)
    is_lokr = any(innermost(layer).kronecker() is not None for layer in found)
    stack = stacked(found).exact()
    gram = apart(found).gram() if is_lokr else stack.gram()
    ranks = [0] * len(terms)
    for at, ((index, target), layer) in enumerate(zip(group.members, found, strict=True)):
        finite(gram[at, at], target, layer, terms[index].name)
        ranks[index] = layer.rank
    return LayerConflict(
        target=group.target,
        component=component(group.target),
        kind=kind_of(group.target, found[0]),
        ranks=tuple(ranks),
        conflict=conflict_of(
            gram,
            stack if isinstance(stack, Stack) else None,
            tuple(index for index, _ in group.members),
            len(terms),
            share,
        ),
    )
