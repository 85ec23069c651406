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
from ...errors import NonFiniteError
from ...models.architectures import Parameter
from ...models.differences import read_parameter
from ...models.pairing import parameter_kind
from ...models.parameter import Piece
from ...report import Skip
from ...run.scratch import SCRATCH
from ...source import TensorSource
from ..weights.change import BakedLayer, Change
from ..weights.shares import Share
from ..weights.step import Measured, not_numbers
from ..weights.terms import Replacement, Rows, Stored, matrix, matrix_shape

UNCHANGED = "no number differs"


@dataclass(frozen=True, slots=True)
class MergedLayer(BakedLayer):
    """One parameter that was merged; measured on one in four of the tiles that a large one has.

    Attributes:
        gain: How much of the change meant is in the one stored: 1 where it survived the rounding.
        size: Norm of the change as a share of that of the base's weight.
    """

    gain: float
    size: float


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


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """A step of the engine: what is added to one parameter of the base.

    Attributes:
        parameter: Which, and where it lies in the base.
        base: The checkpoint.
        node: What is added; or the weight that takes its place.
        whole: The model's parameter, where the base has it in pieces.
        piece: Which of them this is.
    """

    parameter: Parameter
    base: TensorSource
    node: Node
    whole: Parameter | None = None
    piece: Piece | None = None

    @property
    def every(self) -> int:
        """See `Step`."""
        return 4

    def change(self, weight: Stored, dtype: torch.dtype) -> Rows:
        """See `Step`."""
        whole = self.parameter if self.whole is None else self.whole
        rows = self.node.open(Opening(whole, weight, dtype, self.piece))
        return Replacement(rows) if self.node.is_whole else rows

    def report(self, change: Rows, measured: Measured) -> MergedLayer | Skip:
        """See `Step`."""
        del change
        one, kind = self.parameter, parameter_kind(self.parameter)
        if measured.norm == 0:
            return Skip(one.target, one.component, kind, UNCHANGED, 0.0)
        return MergedLayer(
            target=one.target,
            component=one.component,
            kind=kind,
            shape=one.shape,
            rank=min(matrix_shape(one.shape)),
            norm=measured.norm,
            residual=measured.lost,
            cosine=measured.cosine,
            gain=measured.gain,
            size=measured.norm / measured.base if measured.base else float("inf"),
        )

    def not_finite(self, weight: Tensor, change: Tensor) -> NonFiniteError | None:
        """See `Step`."""
        way_out = "use another file, or keep the base's weights there (`allow_nonfinite`)"
        for leaf in (Leaf(self.base, self.parameter), *self.node.leaves()):
            numbers = read_parameter(leaf.source, leaf.parameter)
            what = f"`{leaf.parameter.key}` of {leaf.source.name}"
            if found := not_numbers(numbers, what, way_out, self.parameter.target):
                return found
        what = f"the change of `{self.parameter.target}`"
        return not_numbers(change, what, way_out, self.parameter.target)
