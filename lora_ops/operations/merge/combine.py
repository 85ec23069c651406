"""What a step of a merge adds to one parameter: sums of models, of differences, of adapters' changes.

Planned, they are nodes, which know names and files; opened for a job, they are rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ...adapters.layers import Convention
from ...models.architectures import Parameter
from ...models.differences import read_parameter
from ...models.parameter import Piece
from ...run.scratch import SCRATCH
from ...source import TensorSource
from ..weights.change import as_stored
from ..weights.shares import Share
from ..weights.terms import Delta, Rows, Stored, matrix, tiles_of


class Opening:
    """The terms of one parameter, opened for one job: what is asked for twice is opened once.

    Args:
        parameter: Where it lies in the base, all of it.
        weight: What the output stores of it.
        dtype: To compute in.
        source: The base.
        piece: Where the base has the parameter in pieces, that which is stored there.
        as_model: Whether rows are those of the weight as the model has it, not as it is stored.
    """

    def __init__(
        self,
        parameter: Parameter,
        weight: Rows,
        dtype: torch.dtype,
        source: TensorSource,
        piece: Piece | None = None,
        *,
        as_model: bool = False,
    ) -> None:
        self.whole, self.piece, self.source = parameter, piece, source
        self.parameter = parameter if piece is None else piece.parameter
        if as_model:
            self.parameter = replace(parameter, transposed=False, pieces=())
        self.weight, self.dtype = weight, dtype
        self._found: dict[tuple[int, str, tuple[int, int] | None], Rows] = {}

    @property
    def is_as_model(self) -> bool:
        """Whether the output stores the weight as the model has it, in one piece."""
        return self.piece is None and not self.parameter.transposed

    def read(self, node: Node) -> Tensor:
        """Compute a term for all of the weight as the model has it."""
        weight = Held(matrix(read_parameter(self.source, self.whole)))
        at = Opening(self.whole, weight, self.dtype, self.source, as_model=True)
        rows = node.open(at)
        found = torch.empty(weight.shape, dtype=self.dtype)
        for part in tiles_of(weight.shape):
            place = found[part]
            tile = rows.rows(part, place)
            if tile is not place:
                place.copy_(tile)
        return found.reshape(self.whole.shape)

    def stored(self, source: TensorSource, parameter: Parameter) -> Rows:
        """Rows of a parameter of some checkpoint, as the output stores it."""
        key = id(source), parameter.key, parameter.rows
        if key not in self._found:
            same = source is self.source and parameter == self.whole
            self._found[key] = self.weight if same else self._opened(source, parameter)
        return self._found[key]

    def _opened(self, source: TensorSource, parameter: Parameter) -> Rows:
        if self.piece is not None or parameter.pieces:
            return self._joined(source, parameter)
        turned = parameter.transposed != self.parameter.transposed
        found = Stored(source, parameter.key, self.dtype, parameter.rows, turned=turned)
        return found if found.shape == self.weight.shape else Filled(found, self.weight)

    def _joined(self, source: TensorSource, parameter: Parameter) -> Rows:
        """Rows of what one of the two files has in pieces: from the other's file where they are alike."""
        piece = self.piece
        if piece is not None:
            for other in parameter.pieces:
                like = replace(other.parameter, key="", name="") == replace(
                    piece.parameter, key="", name=""
                )
                if like and (other.rows, other.swapped) == (piece.rows, piece.swapped):
                    one = other.parameter
                    return Stored(source, one.key, self.dtype, one.rows)
        return self.placed(read_parameter(source, parameter))

    def placed(self, weight: Tensor) -> Held:
        """Rows of a weight in memory, given as the model has it, as the output stores them."""
        return Held(as_stored(weight, self.parameter, self.piece))


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Rows of a weight in memory."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight."""
        return self.tensor.shape[0], self.tensor.shape[1]

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """See `Rows`."""
        return out.copy_(self.tensor[part])


@dataclass(frozen=True, slots=True, eq=False)
class Filled:
    """Rows that are shorter than those of the output: they end in those of the base."""

    short: Rows
    base: Rows

    @property
    def shape(self) -> tuple[int, int]:
        """That of the output."""
        return self.base.shape

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """See `Rows`."""
        width = self.short.shape[1]
        memory = SCRATCH.take((len(out), width), out.dtype)
        out.copy_(self.base.rows(part, out))
        out[:, :width] = self.short.rows(part, memory)
        SCRATCH.give_back()
        return out


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


class Node(Protocol):
    """A term as it is planned: opened for each job."""

    @property
    def is_whole(self) -> bool:
        """Whether it yields a weight; else a change of one."""
        ...

    def open(self, at: Opening) -> Rows:
        """Open it for one job."""
        ...

    def leaves(self) -> Iterator[Leaf]:
        """The checkpoints' parameters in it."""
        ...


@dataclass(frozen=True, slots=True)
class Leaf:
    """A parameter of a checkpoint."""

    source: TensorSource
    parameter: Parameter
    is_whole: bool = field(default=True, init=False)

    def open(self, at: Opening) -> Rows:
        """See `Node`."""
        return at.stored(self.source, self.parameter)

    def leaves(self) -> Iterator[Leaf]:
        """See `Node`."""
        yield self


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

    def leaves(self) -> Iterator[Leaf]:
        """See `Node`."""
        if any(share.needs_base for share in self.shares):
            yield from self.base.leaves()


@dataclass(frozen=True, slots=True)
class Difference:
    """One weight less another."""

    of: Node
    minus: Node
    is_whole: bool = field(default=False, init=False)

    def open(self, at: Opening) -> Rows:
        """See `Node`."""
        return Minus(self.of.open(at), self.minus.open(at))

    def leaves(self) -> Iterator[Leaf]:
        """See `Node`."""
        yield from self.of.leaves()
        yield from self.minus.leaves()


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
            return self.terms[0].open(at)
        rows = [term.open(at) for term in self.terms]
        return Weighted(rows, (1.0,) * len(rows), at.weight.shape)

    def leaves(self) -> Iterator[Leaf]:
        """See `Node`."""
        for term in self.terms:
            yield from term.leaves()
