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
from ..weights.change import Change
from ..weights.shares import Share
from ..weights.terms import Rows, Stored, matrix


class Opening:
    """The terms of one parameter, opened for one job: what is asked for twice is opened once."""

    def __init__(
        self, parameter: Parameter, weight: Stored, dtype: torch.dtype, piece: Piece | None = None
    ) -> None:
        self.whole, self.piece = parameter, piece
        self.parameter = parameter if piece is None else piece.parameter
        self.weight, self.dtype = weight, dtype
        self._found: dict[tuple[int, str, tuple[int, int] | None], Rows] = {}

    def stored(self, source: TensorSource, parameter: Parameter) -> Rows:
        """Rows of a parameter of some checkpoint, as the output stores it."""
        key = id(source), parameter.key, parameter.rows
        if key not in self._found:
            same = source is self.weight.source and parameter == self.whole
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
        tensor = read_parameter(source, parameter)
        if piece is not None:
            tensor = tensor[slice(*piece.rows)]
            tensor = torch.cat(tensor.chunk(2)[::-1]) if piece.swapped else tensor
            tensor = tensor.reshape(piece.parameter.shape)
        held = matrix(tensor)
        return Held(held.mT if self.parameter.transposed else held)


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
    """What adapters change; their strengths are in the shares."""

    shares: tuple[Share, ...]
    dora: Convention = "paper"
    is_whole: bool = field(default=False, init=False)

    def open(self, at: Opening) -> Rows:
        """See `Node`."""
        return Change(at.parameter, self.shares, self.dora).change(at.weight, at.dtype)

    def leaves(self) -> Iterator[Leaf]:
        """See `Node`."""
        yield from ()


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
