"""Several adapters of one model, matched: under one packing, where one fuses what another splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations

from ...models.architectures import Architecture
from ..formats import Format, ModelNames, format_named, format_of, model_names, spelling_key
from ..layers import Layer
from ..model import names_of_any
from ..outline import outline, outlined
from ..renamed import renamed
from ..repacking.plan import planned
from .group import Group, Term, common_models, group_by_weight


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """Adapters whose modules are the same where they change the same rows of a weight.

    Attributes:
        terms: The adapters and their strengths.
        groups: Which of their layers change one weight, of these terms.
        model: The model that all are for, the likeliest where in doubt; None if unknown.
    """

    terms: list[Term]
    groups: list[Group]
    model: Architecture | None

    @property
    def keys(self) -> dict[str, Mapping[str, str]]:
        """The keys of each target of the result, by role."""
        return {group.target: group.keys for group in self.groups}

    def outline(self) -> Match:
        """The same with layers without data, where they are read from files."""
        terms = [replace(term, adapter=outlined(term.adapter)) for term in self.terms]
        return replace(self, terms=terms)


def match_adapters(
    terms: Sequence[Term],
    format: str | None = None,
    reference: Sequence[str] = (),
    architecture: Architecture | None = None,
) -> Match:
    """Match the layers of all terms, whatever their naming schemes and packings.

    Terms that agree are kept as they are. Of others each layer is renamed, cut or joined when it is
    read, as `convert` would do it, exactly.

    Args:
        terms: One or more, for one model.
        format: How the result is to be named; None: as the first term is, as no file is written.
        reference: Canonical targets of a checkpoint, which give a kohya name its dots back.
        architecture: Of the model that all are for; None: told by the names.

    Raises:
        MismatchError: Two terms are for different models, or one names a weight twice.
        ArgumentError: A layer has no name in that format, or it is in doubt which, as several models
            have all names.
        LoraOpsError: As `convert`; also later, when a layer is read.
    """
    possible = [architecture] if architecture is not None else common_models(terms)
    names = _names(terms, possible, format, reference)
    same = _aligned(terms, names, format)
    groups = group_by_weight(same, names.architecture, format, reference)
    return Match(same, groups, names.architecture or next(iter(possible), None))


def _names(
    terms: Sequence[Term],
    possible: Sequence[Architecture],
    format: str | None,
    reference: Sequence[str],
) -> ModelNames:
    """The names of the model that all terms are for; of an unknown model where that is in doubt."""
    if len(possible) < 2:
        return model_names(possible[0] if possible else None, reference)
    modules = dict.fromkeys(module for term in terms for module in term.adapter.layers)
    scheme = None if format is None else format_named(format)
    keeps = scheme is None or all(format_of(module) == scheme for module in modules)
    return names_of_any(possible, modules, reference, scheme, keeps=keeps)


def _aligned(terms: Sequence[Term], names: ModelNames, format: str | None) -> list[Term]:
    known: dict[str, set[_Part]] = {}
    for module in {module for term in terms for module in term.adapter.layers}:
        place = names.place(module)
        if place is not None:
            part = _Part(place.start, place.stop, spelling_key(module))
            known.setdefault(place.native, set()).add(part)
    pairs = (pair for parts in known.values() for pair in combinations(parts, 2))
    if not any(one.start < other.stop and other.start < one.stop for one, other in pairs):
        return list(terms)
    scheme = format_named(format or terms[0].adapter.format)
    return [_renamed(term, scheme, names) for term in terms]


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a weight, under a name that is the same in all spellings of one packing."""

    start: Fraction
    stop: Fraction
    key: str


def _renamed(term: Term, scheme: Format, names: ModelNames) -> Term:
    pieces = {piece.module: piece for piece in planned(term.adapter, scheme, names)}
    strengths: dict[str, float] = {}
    folded: dict[str, float] = {}
    for piece in pieces.values():
        own = {module: term.strength(module) for module, _ in piece.members}
        if len(set(own.values())) == 1:
            strengths[piece.module] = next(iter(own.values()))
        else:
            folded |= own
    source = replace(term.adapter, layers=_Strengthened(term.adapter.layers, folded))
    adapter = renamed(source, list(pieces.values()), names, scheme)
    return replace(term, adapter=adapter, strengths=strengths)


@dataclass(frozen=True, slots=True, eq=False)
class _Strengthened(Mapping[str, Layer]):
    """Layers with a factor in their alpha, where parts of one layer have different ones."""

    layers: Mapping[str, Layer]
    factors: Mapping[str, float]

    def __getitem__(self, module: str) -> Layer:
        layer, factor = self.layers[module], self.factors.get(module, 1.0)
        if factor == 1 or layer.needs_base:  # joining refuses these, with a message of its own
            return layer
        return layer.times(module, factor, has_alpha=True)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def outline(self) -> Mapping[str, Layer]:
        """The same without data."""
        return replace(self, layers=outline(self.layers))
