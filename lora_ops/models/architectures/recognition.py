"""Which architectures an adapter can be of: evidence for and against, counted over all its names.

A model is possible where the file has nothing that it cannot have: a name that is in none of its
tables, a block beyond its last, a fused projection of another packing. Of the possible ones those go
that have too few of the names, then those whose published shapes are others, then those of which
the file has some blocks where it has all of another. What is left is a doubt, and is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from .architecture import Architecture
from .catalogue import ARCHITECTURES
from .lookup import published_packings
from .renames import pattern_of, tokens_of
from .unet_blocks import Layout, is_in_layout, layout_names

Shape = tuple[int, ...]

# So many names of another model are reported, and do not change what a file is taken for.
_FEW = 1
# Below this width, which is less than any published model's, sizes are no evidence: a test model.
_TOY = 256
_CLIP = re.compile(r"te2:(text_model_)?encoder_layers_\d+_(self_attn|mlp)_")
_ENCODER = re.compile(r"te\d:")
# In a UNet the numbers of blocks are part of the names.
_UNET = ("input_blocks_", "output_blocks_", "down_blocks_", "up_blocks_")
_ALL = (Fraction(0), Fraction(1))
_NUMBER = re.compile(r"(?<=_)\d+(?=_|$)")


@dataclass(frozen=True, slots=True)
class Recognition:
    """What an adapter can be for.

    Attributes:
        possible: Architectures that have its names, the likeliest first; () for none that is known.
        strays: The names that the first of these architectures does not have.
    """

    possible: tuple[Architecture, ...] = ()
    strays: tuple[str, ...] = ()

    @property
    def certain(self) -> Architecture | None:
        """The model that it is for; None where in doubt. The first of a family stands for all."""
        families = {one.family or one.name for one in self.possible}
        return self.possible[0] if len(families) == 1 else None

    @property
    def titles(self) -> tuple[str, ...]:
        """Titles of the possible ones, one of a family."""
        first = {one.family or one.name: one.title for one in reversed(self.possible)}
        return tuple(reversed(first.values()))


class _Known(NamedTuple):
    """A module of an architecture under one of its names: rows of a native one."""

    architecture: Architecture
    tokens: tuple[str, ...]
    native: str
    start: Fraction
    stop: Fraction
    square: Fraction | None  # the share of the rows that must be as high as the input is wide
    stacks: tuple[str, ...]  # what stands before each number
    sizes: tuple[tuple[int | None, int | None], ...]
    is_own: bool  # whether it is written, not only read

    def numbers(self, tokens: Iterable[str]) -> list[str] | None:
        """The numbers in a name of this module; None if it is not one."""
        pairs = list(zip(self.tokens, tokens, strict=True))
        if not all(asked in ("{}", given) for asked, given in pairs):
            return None
        return [given for asked, given in pairs if asked == "{}"]

    def is_there(self, numbers: Iterable[str]) -> bool:
        """Whether some published model has as many blocks."""
        counts = self.architecture.blocks
        return all(
            int(number) < max(counts[stack])
            for stack, number in zip(self.stacks, numbers, strict=True)
            if stack in counts
        )

    def is_packed(self, shape: Shape | None) -> bool:
        """Whether rows of a fused projection are as many as its packing says."""
        if self.square is None or shape is None or len(shape) < 2 or shape[1] < 1:
            return True
        return shape[0] * self.square == shape[1] * (self.stop - self.start)

    def is_sized(self, shape: Shape | None) -> bool:
        """Whether some published model has a module of this shape there."""
        if not self.sizes or shape is None or len(shape) < 2:
            return True
        if min(shape[:2]) < _TOY:
            return not self.architecture.variant_of
        share = self.stop - self.start
        return any(
            (out is None or shape[0] == out * share) and (into in (None, shape[1]) or shape[1] < 1)
            for out, into in self.sizes
        )


@dataclass(slots=True)
class _Group:
    """Layers of one shape whose names differ only in the block's number."""

    shape: Shape | None
    last: str
    names: list[str] = field(default_factory=list[str])
    numbers: set[int] = field(default_factory=set[int])
    highest: int = -1


@dataclass(slots=True)
class _Tally:
    """The evidence on one architecture.

    Attributes:
        known: How many of the names it has.
        weak: How many of these only under names that are read and never written for it.
        impossible: Whether a block or a size speaks against it.
        unpacked: Whether a fused projection is of another packing.
        blocks: Numbers of blocks that the file has, by stack.
        attentions: For a UNet, the names of its blocks with attention.
    """

    known: int = 0
    weak: int = 0
    impossible: bool = False
    unpacked: bool = False
    blocks: dict[str, set[int]] = field(default_factory=dict[str, "set[int]"])
    attentions: set[str] = field(default_factory=set[str])


def recognise_layers(layers: Mapping[str, Shape | None]) -> Recognition:
    """Return the architectures that an adapter can be for.

    Args:
        layers: Shape (out, in, …) of each layer, None where it is not known and -1 for any number
            of inputs; by its flattened name: without prefix, with underscores for dots, those of
            text encoders with ``te1:``, ``te2:`` or ``te3:`` in front.
    """
    inside = {name: shape for name, shape in layers.items() if not _ENCODER.match(name)}
    clip = any(map(_CLIP.match, layers))
    if not inside:
        return Recognition(tuple(one for one in ARCHITECTURES if clip and one.second_clip))
    tallies: dict[Architecture, _Tally] = {}
    groups = _groups(inside)
    for group in groups:
        for one, ways in _ways(group.last).items():
            _count(tallies.setdefault(one, _Tally()), group, ways)
    possible = [one for one in ARCHITECTURES if one in tallies and not tallies[one].impossible]
    possible = [one for one in possible if not one.mark or _has(inside, one.mark)]
    if clip and any(one.second_clip for one in possible):
        possible = [one for one in possible if one.second_clip]
    most = max((tallies[one].known for one in possible), default=0)
    strays = len(inside) - most
    if strays > _FEW or most < max(2 * strays, 1):
        return Recognition()
    possible = [one for one in possible if tallies[one].known == most]
    possible = [one for one in possible if not tallies[one].unpacked] or possible
    least = min(tallies[one].weak for one in possible)
    possible = [one for one in possible if tallies[one].weak == least]
    whole = {one.name for one in possible if _has_all_blocks(one, tallies[one])}
    names = {one.name for one in possible} - whole
    # A variant is taken if all of its blocks are there: fewer may be a part of the commoner model.
    possible = [one for one in possible if one.variant_of not in names | whole or one.name in whole]
    whole |= {one.variant_of for one in possible}
    possible = [one for one in possible if one.name in whole] or possible
    lacking = [group.names for group in groups if possible[0] not in _ways(group.last)]
    return Recognition(tuple(possible), tuple(name for names in lacking for name in names))


def _has(names: Iterable[str], mark: str) -> bool:
    found = re.compile(mark)
    return any(map(found.search, names))


def _groups(layers: Mapping[str, Shape | None]) -> Sequence[_Group]:
    found: dict[tuple[str, Shape | None], _Group] = {}
    for name, shape in layers.items():
        match = None if name.startswith(_UNET) else _NUMBER.search(name)
        key = name if match is None else f"{name[: match.start()]}#{name[match.end() :]}"
        group = found.setdefault((key, shape), _Group(shape, name))
        group.names.append(name)
        if match is not None:
            if int(match[0]) > group.highest:
                group.last, group.highest = name, int(match[0])
            group.numbers.add(int(match[0]))
    return tuple(found.values())


def _count(tally: _Tally, group: _Group, ways: Sequence[tuple[_Known, list[str]]]) -> None:
    there = [known for known, numbers in ways if known.is_there(numbers)]
    fitting = [known for known in there if known.is_sized(group.shape)]
    packed = [known for known in fitting if known.is_packed(group.shape)]
    tally.known += len(group.names)
    tally.weak += 0 if any(known.is_own for known in fitting) else len(group.names)
    tally.impossible |= not fitting
    tally.unpacked |= not packed
    for known in packed or fitting:
        if known.stacks:
            tally.blocks.setdefault(known.stacks[0], set()).update(group.numbers)
        tally.attentions.add(".".join(known.native.split(".")[:3]))


def _has_all_blocks(one: Architecture, tally: _Tally) -> bool:
    """Whether a file has a layer in every block of some published model, as far as it has stacks."""
    if one.layout is not None:
        return _attentions(one.layout) <= tally.attentions
    stacks = {stack: found for stack, found in tally.blocks.items() if stack in one.blocks}
    return bool(stacks) and all(
        any(found == set(range(count)) for count in one.blocks[stack])
        for stack, found in stacks.items()
    )


@cache
def _attentions(layout: Layout) -> set[str]:
    pairs = layout_names(layout).native.items()
    there = (pair for pair in pairs if is_in_layout(pair[1], layout))
    return {native for native, to in there if ".attentions." in to and to[:3] != "mid"}


def _ways(name: str) -> dict[Architecture, list[tuple[_Known, list[str]]]]:
    """The modules that a name can be, by architecture, with the numbers in it."""
    tokens = tokens_of(name)
    found: dict[Architecture, list[tuple[_Known, list[str]]]] = {}
    for known in _index().get(pattern_of(tokens), ()):
        numbers = known.numbers(tokens)
        if numbers is not None:
            found.setdefault(known.architecture, []).append((known, numbers))
    return found


@cache
def _index() -> Mapping[tuple[str, ...], Sequence[_Known]]:
    """Every name of every architecture, by its pattern."""
    index: dict[tuple[str, ...], list[_Known]] = {}
    for one in ARCHITECTURES:
        for known in _names(one):
            index.setdefault(pattern_of(known.tokens), []).append(known)
    return index


def _names(one: Architecture) -> Iterator[_Known]:
    packings = published_packings(one)
    squares = {
        packing.native: packing.spans[0][1]
        for packing in reversed(packings)
        if len(packing.foreign) > 1
    }
    written: set[str] = set()
    for packing in packings:
        square = squares.get(packing.native)
        if one.layout is not None and not is_in_layout(packing.foreign[0], one.layout):
            continue
        own = packing.native not in written
        written.add(packing.native)
        if own and not one.foreign_only:
            yield _known(one, packing.native, packing.native, _ALL, square, own=True)
        for name, span in zip(packing.foreign, packing.spans, strict=True):
            if name and (name != packing.native or one.foreign_only):
                yield _known(one, name, packing.native, span, square, own=own)
    for name in one.also:
        yield _known(one, name, name, _ALL, None, own=True)


def _known(
    one: Architecture,
    name: str,
    native: str,
    span: tuple[Fraction, Fraction],
    square: Fraction | None,
    *,
    own: bool,
) -> _Known:
    sizes = (size for end, sizes in one.sizes.items() if native.endswith(end) for size in sizes)
    return _Known(
        architecture=one,
        tokens=tokens_of(name),
        native=native,
        start=span[0],
        stop=span[1],
        square=square,
        stacks=tuple(before for before, part in pairwise(native.split(".")) if part == "{}"),
        sizes=tuple(sizes),
        is_own=own,
    )
