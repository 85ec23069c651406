"""What a step of a merge adds to one parameter: sums of models, of differences, of adapters' changes.

All of it is known before a number is read, but for the coefficients of the methods that ask for inner
products (the span methods): those take a pass over the weight first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ...adapters.layers import Convention
from ...errors import NonFiniteError
from ...models.architectures import Parameter
from ...models.pairing import parameter_kind
from ...report import Skip
from ...run.scratch import SCRATCH
from ...source import TensorSource
from ..methods import coefficients
from .change import BakedLayer
from .shares import Share
from .step import Measured, not_numbers
from .terms import Delta, Rows, Stored, matrix_shape, tiles_of

UNCHANGED = "no number differs"


@dataclass(frozen=True, slots=True)
class MergedLayer(BakedLayer):
    """One parameter that was merged.

    Attributes:
        gain: How much of the change meant is in the one stored: 1 where it survived the rounding.
        size: Norm of the change as a share of that of the base's weight.
    """

    gain: float
    size: float


class Opening:
    """The terms of one parameter, opened for one job: what is asked for twice is opened once."""

    def __init__(self, parameter: Parameter, weight: Stored, dtype: torch.dtype) -> None:
        self.parameter, self.weight, self.dtype = parameter, weight, dtype
        self._found: dict[tuple[int, str, tuple[int, int] | None], Rows] = {}

    def stored(self, source: TensorSource, parameter: Parameter) -> Rows:
        """Rows of a parameter of some checkpoint, as the output stores it."""
        key = id(source), parameter.key, parameter.rows
        if key not in self._found:
            same = source is self.weight.source and parameter == self.parameter
            self._found[key] = self.weight if same else self._opened(source, parameter)
        return self._found[key]

    def _opened(self, source: TensorSource, parameter: Parameter) -> Rows:
        turned = parameter.transposed != self.parameter.transposed
        found = Stored(source, parameter.key, self.dtype, parameter.rows, turned=turned)
        return found if found.shape == self.weight.shape else Filled(found, self.weight)


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
    """A term as it is planned."""

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
    dora: Convention

    def open(self, at: Opening) -> Rows:
        """See `Node`."""
        base = None
        if any(share.needs_base for share in self.shares):
            base = at.weight.whole()
            base = (base.mT if at.parameter.transposed else base).reshape(at.parameter.shape)
        delta = Delta.of(self.shares, base, at.dtype, self.dora)
        return delta.transposed if at.parameter.transposed else delta

    def leaves(self) -> Iterator[Leaf]:
        """See `Node`."""
        yield from ()


@dataclass(frozen=True, slots=True)
class Difference:
    """One term less another."""

    of: Node
    minus: Node

    def open(self, at: Opening) -> Rows:
        """See `Node`."""
        return Minus(self.of.open(at), self.minus.open(at))

    def leaves(self) -> Iterator[Leaf]:
        """See `Node`."""
        yield from self.of.leaves()
        yield from self.minus.leaves()


@dataclass(frozen=True, slots=True)
class Combination:
    """Terms times coefficients; with a method, its coefficients for these strengths.

    Attributes:
        terms: At least one.
        weights: Of each.
        method: One of `METHODS` that looks at the terms; None for a plain sum.
        parameters: Of the method.
    """

    terms: tuple[Node, ...]
    weights: tuple[float, ...]
    method: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict[str, float])

    def open(self, at: Opening) -> Rows:
        """See `Node`."""
        rows = [term.open(at) for term in self.terms]
        factors = self.weights
        if self.method is not None:
            strengths = torch.tensor(self.weights, dtype=torch.float64)
            gram = _gram(rows, at.weight.shape, at.dtype)
            factors = coefficients(self.method, gram, strengths, **self.parameters).tolist()
        return Weighted(rows, factors, at.weight.shape)

    def leaves(self) -> Iterator[Leaf]:
        """See `Node`."""
        for term in self.terms:
            yield from term.leaves()


def _gram(terms: Sequence[Rows], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Inner products of matrices, summed in float64."""
    gram = torch.zeros(len(terms), len(terms), dtype=torch.float64)
    with SCRATCH.frame():
        for part in tiles_of(shape):
            with SCRATCH.frame():
                size = (part.stop - part.start, shape[1])
                stack = SCRATCH.take((len(terms), size[0] * size[1]), torch.float64)
                memory = SCRATCH.take(size, dtype)
                for row, term in zip(stack, terms, strict=True):
                    row.copy_(term.rows(part, memory).reshape(-1))
                gram += stack @ stack.mT
    return gram


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """A step of the engine: what is added to one parameter of the base.

    Attributes:
        parameter: Which, and where it lies in the base.
        base: The checkpoint.
        node: What is added.
    """

    parameter: Parameter
    base: TensorSource
    node: Node

    def change(self, weight: Stored, dtype: torch.dtype) -> Rows:
        """See `Step`."""
        return self.node.open(Opening(self.parameter, weight, dtype))

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
            numbers = leaf.source.tensor(leaf.parameter.key)
            what = f"`{leaf.parameter.key}` of {leaf.source.name}"
            if found := not_numbers(numbers, what, way_out, self.parameter.target):
                return found
        what = f"the change of `{self.parameter.target}`"
        return not_numbers(change, what, way_out, self.parameter.target)
