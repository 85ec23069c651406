"""What another program calls a module: patterns, the packing of fused projections, and the lookup.

Native names are ComfyUI's, without the component in front; foreign ones are those of diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, pairwise

_SEPARATOR = re.compile(r"[._]")
_ANY = "{}"
_NUMBER = "#"


@dataclass(frozen=True, slots=True)
class Packing:
    """A module of the native model, and the modules of the foreign one that hold its rows.

    ``{}`` is a number; both sides have as many, in the same order.

    Attributes:
        native: Its name.
        foreign: The foreign modules that hold its rows, from the first row to the last; an empty
            name for rows that none of them holds.
        parts: Their shares of the rows; () for equal ones.
        swapped: The foreign model has the halves of the rows in the other order: shift and scale
            of the last modulation. A layer of the same name that has more than these two is not
            swapped.
        flat: Of a parameter of no module: the native one has the foreign one's numbers in a row.
    """

    native: str
    foreign: tuple[str, ...]
    parts: tuple[int, ...] = ()
    swapped: bool = False
    flat: bool = False

    def leaf(self, name: str) -> Packing:
        """The packing of one parameter of the module, such as its `weight`, by whole names."""
        foreign = tuple(part and f"{part}.{name}" for part in self.foreign)
        return replace(self, native=f"{self.native}.{name}", foreign=foreign)

    @property
    def spans(self) -> tuple[tuple[Fraction, Fraction], ...]:
        """Where each foreign module begins and ends, as a share of the native one's rows."""
        parts = self.parts or (1,) * len(self.foreign)
        edges = [Fraction(edge, sum(parts)) for edge in accumulate(parts, initial=0)]
        return tuple(pairwise(edges))


@dataclass(frozen=True, slots=True)
class ModelRows:
    """Rows of a native module.

    Attributes:
        native: The module's name.
        start, stop: The rows, as shares of all of them.
        swapped: Whether the name belongs to a model that has the halves in the other order.
    """

    native: str
    start: Fraction = Fraction(0)
    stop: Fraction = Fraction(1)
    swapped: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether these are all rows."""
        return self.stop - self.start == 1


_Index = Mapping[tuple[str, ...], list[tuple[tuple[str, ...], Packing, int]]]


@dataclass(frozen=True, slots=True, eq=False)
class Renames:
    """The modules of one model, to be looked up by either name; from `renames`."""

    native: _Index
    foreign: _Index

    def find(self, name: str) -> ModelRows | None:
        """Return where a module is in the native model; None for one that no packing names.

        Args:
            name: Native or foreign, without any prefix, with dots or underscores.
        """
        for packing, _, numbers in _matches(name, self.native):
            return ModelRows(packing.native.format(*numbers))
        for packing, index, numbers in _matches(name, self.foreign):
            start, stop = packing.spans[index]
            return ModelRows(packing.native.format(*numbers), start, stop, packing.swapped)
        return None

    def packed(self, foreign: str) -> Iterator[Packing]:
        """Yield the packings that have a foreign name, with its numbers in all of their names."""
        for packing, _, numbers in _matches(foreign, self.foreign):
            parts = tuple(name.format(*numbers) for name in packing.foreign)
            yield replace(packing, native=packing.native.format(*numbers), foreign=parts)

    def foreign_parts(self, native: str) -> tuple[tuple[str, ModelRows], ...]:
        """Return what stands for a native module in the foreign model; () if nothing is known."""
        for packing, _, numbers in _matches(native, self.native):
            names = (name.format(*numbers) for name in packing.foreign)
            return tuple(
                (name, ModelRows(native, start, stop, packing.swapped))
                for name, (start, stop) in zip(names, packing.spans, strict=True)
            )
        return ()


def renames(packings: Iterable[Packing]) -> Renames:
    """Return the lookup of these packings.

    Where several have one native name, the first is what is written; the others are only read.
    """
    native: dict[tuple[str, ...], list[tuple[tuple[str, ...], Packing, int]]] = {}
    foreign: dict[tuple[str, ...], list[tuple[tuple[str, ...], Packing, int]]] = {}
    for packing in packings:
        tokens = tokens_of(packing.native)
        native.setdefault(pattern_of(tokens), []).append((tokens, packing, 0))
        for index, name in enumerate(packing.foreign):
            if not name:  # rows that the foreign model lacks
                continue
            tokens = tokens_of(name)
            foreign.setdefault(pattern_of(tokens), []).append((tokens, packing, index))
    return Renames(native, foreign)


def renamed(*pairs: tuple[str, str]) -> tuple[Packing, ...]:
    """Modules that have another name: (native, foreign)."""
    return tuple(Packing(native, (foreign,)) for native, foreign in pairs)


def same(*names: str) -> tuple[Packing, ...]:
    """Modules that have one name in both models; listed, for a kohya name has lost its dots."""
    return renamed(*zip(names, names, strict=True))


def with_leaves(packings: Iterable[Packing], *leaves: str) -> tuple[Packing, ...]:
    """The parameters of modules, by whole names: those that these leaves name."""
    return tuple(packing.leaf(leaf) for packing in packings for leaf in leaves)


def within(native: str, foreign: str, packings: Iterable[Packing]) -> tuple[Packing, ...]:
    """The packings of one block, given relative to it."""
    return tuple(
        replace(
            one,
            native=native + one.native,
            foreign=tuple(name and foreign + name for name in one.foreign),
        )
        for one in packings
    )


def tokens_of(name: str) -> tuple[str, ...]:
    """Return the parts of a name between dots or underscores."""
    return tuple(_SEPARATOR.split(name))


def pattern_of(tokens: Iterable[str]) -> tuple[str, ...]:
    """Return what names have in common that differ in numbers alone."""
    return tuple(_NUMBER if token == _ANY or token.isdecimal() else token for token in tokens)


def _matches(name: str, index: _Index) -> Iterator[tuple[Packing, int, list[str]]]:
    tokens = tokens_of(name)
    for pattern, packing, part in index.get(pattern_of(tokens), ()):
        pairs = list(zip(pattern, tokens, strict=True))
        if all(asked in (_ANY, given) for asked, given in pairs):
            yield packing, part, [given for asked, given in pairs if asked == _ANY]
