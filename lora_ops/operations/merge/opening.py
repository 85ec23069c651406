"""A parameter of a merge, opened for one job: planned terms, nodes, become rows.

Nodes know names and files; rows are read and computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...models.architectures import Parameter
from ...models.differences import read_parameter
from ...models.parameter import Piece
from ...run.scratch import SCRATCH
from ...source import TensorSource
from ..weights.change import as_stored
from ..weights.terms import Between, Rows, Stored, matrix, tile_height, tiles_of


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
        self._stored: dict[tuple[int, str, tuple[int, int] | None], Rows] = {}
        self._open: dict[
            int, tuple[Node, Rows]
        ] = {}  # the nodes too: an id lives as long as they do
        self._model: Opening | None = self if self.is_as_model else None

    @property
    def is_as_model(self) -> bool:
        """Whether the output stores the weight as the model has it, in one piece."""
        return self.piece is None and not self.parameter.transposed

    def read(self, node: Node) -> Tensor:
        """Compute a term for all of the weight as the model has it."""
        if self._model is None:
            weight = Held(matrix(read_parameter(self.source, self.whole)))
            self._model = Opening(self.whole, weight, self.dtype, self.source, as_model=True)
        rows = self._model.open(node)
        found = torch.empty(rows.shape, dtype=self.dtype)
        for part in tiles_of(rows.shape):
            filled(rows, part, found[part])
        return found.reshape(self.whole.shape)

    def open(self, node: Node) -> Rows:
        """Open a term, or give what it was opened as: a step is one, however many use it."""
        if id(node) in self._open:
            _, rows = self._open[id(node)]
            if isinstance(rows, Shared):
                rows.users += 1
            return rows
        rows = node.open(self)
        if not isinstance(
            rows, Stored | Held | Between | Shared
        ):  # these are as good as remembered
            rows = Shared(rows, self.dtype)
        self._open[id(node)] = node, rows
        return rows

    def stored(self, source: TensorSource, parameter: Parameter) -> Rows:
        """Rows of a parameter of some checkpoint, as the output stores it."""
        key = id(source), parameter.key, parameter.rows
        if key not in self._stored:
            same = source is self.source and parameter == self.whole
            self._stored[key] = self.weight if same else self._opened(source, parameter)
        return self._stored[key]

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


class Node(Protocol):
    """A term as it is planned: opened for each job. Nodes have nodes in common: what two use is one."""

    @property
    def is_whole(self) -> bool:
        """Whether it yields a weight; else a change of one."""
        ...

    @property
    def parts(self) -> Sequence[Node]:
        """The nodes in it."""
        ...

    def open(self, at: Opening) -> Rows:
        """Open it for one job; others ask the opening, which remembers."""
        ...


def filled(rows: Rows, part: slice, place: Tensor) -> Tensor:
    """Compute some rows into a place; see `Rows`."""
    found = rows.rows(part, place)
    return found if found is place else place.copy_(found)


class Shared:
    """Rows that several may ask for: if so, the last tile is remembered.

    Attributes:
        users: How many do.
    """

    def __init__(self, rows: Rows, dtype: torch.dtype) -> None:
        self.users = 1
        self._rows, self._dtype = rows, dtype
        self._last: tuple[slice, Tensor] | None = None
        self._memory: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole matrix."""
        return self._rows.shape

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """See `Rows`."""
        if self.users == 1:
            return self._rows.rows(part, out)
        if self._last is None or self._last[0] != part:
            if self._memory is None:
                size = (tile_height(self.shape), self.shape[1])
                self._memory = torch.empty(size, dtype=self._dtype)
            self._last = part, filled(self._rows, part, self._memory[: len(out)])
        return self._last[1]


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
