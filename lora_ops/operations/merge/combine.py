"""What a step of a merge adds to one parameter: sums of models, of differences, of adapters' changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...adapters.layers import Convention
from ...models.architectures import Parameter
from ...run.scratch import SCRATCH
from ...source import TensorSource
from ..weights.shares import Share
from ..weights.terms import Delta, Rows
from .opening import Node, Opening


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """A sum of terms, each times its coefficient."""

    terms: Sequence[Rows]
    factors: Sequence[float]
    shape: tuple[int, int]

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """See `Rows`."""
        memory = SCRATCH.take(out.shape, out.dtype)
        first = True
        for term, factor in zip(self.terms, self.factors, strict=True):
            found = term.rows(part, memory)
            if first:
                torch.mul(found, factor, out=out)
            else:
                out.add_(found, alpha=factor)
            first = False
        SCRATCH.give_back()
        return out.zero_() if first else out


@dataclass(frozen=True, slots=True, eq=False)
class Minus:
    """A difference of two terms."""

    one: Rows
    other: Rows

    @property
    def shape(self) -> tuple[int, int]:
        """Of both."""
        return self.one.shape

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """See `Rows`."""
        memory = SCRATCH.take(out.shape, out.dtype)
        one = self.one.rows(part, out)
        torch.sub(one, self.other.rows(part, memory), out=out)
        SCRATCH.give_back()
        return out


@dataclass(frozen=True, slots=True)
class Leaf:
    """A parameter of a checkpoint."""

    source: TensorSource
    parameter: Parameter
    is_whole: bool = field(default=True, init=False)

    def open(self, at: Opening) -> Rows:
        """See `Node`."""
        return at.stored(self.source, self.parameter)

    @property
    def parts(self) -> tuple[Node, ...]:
        """See `Node`."""
        return ()


@dataclass(frozen=True, slots=True)
class Adapted:
    """What an adapter changes.

    Attributes:
        shares: Its layers of the parameter, strengths included.
        base: The weight that layers are made from which need one: that of the step.
        dora: Whose convention, of kinds that programs read differently.
    """

    shares: tuple[Share, ...]
    base: Node
    dora: Convention = "paper"
    is_whole: bool = field(default=False, init=False)

    def open(self, at: Opening) -> Rows:
        """See `Node`."""
        shares = self.shares
        if at.piece is not None:
            shares = tuple(
                replace(share, seat=seat)
                for share in shares
                if share.seat is not None
                for seat in share.seat.pieces
                if seat.piece == at.piece
            )
        if not shares:
            return Weighted((), (), at.weight.shape)
        base = at.read(self.base) if any(share.needs_base for share in shares) else None
        delta = Delta.of(shares, base, at.dtype, self.dora)
        return delta.transposed if at.parameter.transposed else delta

    @property
    def parts(self) -> tuple[Node, ...]:
        """See `Node`."""
        return (self.base,) if any(share.needs_base for share in self.shares) else ()


@dataclass(frozen=True, slots=True)
class Difference:
    """One weight less another."""

    of: Node
    minus: Node
    is_whole: bool = field(default=False, init=False)

    def open(self, at: Opening) -> Rows:
        """See `Node`."""
        return Minus(at.open(self.of), at.open(self.minus))

    @property
    def parts(self) -> tuple[Node, ...]:
        """See `Node`."""
        return self.of, self.minus


@dataclass(frozen=True, slots=True)
class Sum:
    """A weight and changes of it, or changes alone."""

    terms: tuple[Node, ...]

    @property
    def is_whole(self) -> bool:
        """Whether a weight is among them."""
        return any(term.is_whole for term in self.terms)

    def open(self, at: Opening) -> Rows:
        """See `Node`."""
        if len(self.terms) == 1:
            return at.open(self.terms[0])
        rows = [at.open(term) for term in self.terms]
        return Weighted(rows, (1.0,) * len(rows), at.weight.shape)

    @property
    def parts(self) -> tuple[Node, ...]:
        """See `Node`."""
        return self.terms


def leaves(node: Node) -> Iterator[Leaf]:
    """The checkpoints' parameters in a node, each node asked once."""
    seen: dict[int, Node] = {}
    rest = [node]
    while rest:
        one = rest.pop(0)
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, Leaf):
            yield one
        rest.extend(one.parts)
