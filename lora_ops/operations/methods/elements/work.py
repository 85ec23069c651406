"""What an engine that streams tiles asks of a method that treats elements one by one.

The engine goes through it like this, for each weight:

    work = method.begin(task)
    while work.passes:
        work = work.settle(sum(work.observe(*tile) for tile in tiles))
    for tile in tiles:
        work.combine(*tile)

`observe` and `combine` change nothing in the work, so that threads may share it; what `observe`
returns adds up, in any order and over any parts. A tile is whole rows of the weight as a matrix
(out, in * kernel); a tensor of one dimension is a column and always one tile. All are float32.

The result is the same for any tiles and threads: counts are whole numbers, and sums are float64, of
which the last digit, which depends on the order, is below what a float32 coefficient has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

Value = float | str | bool | tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One weight that is to be merged.

    Attributes:
        shape: Of the weight.
        weights: Of the terms, in this weight: rules by block are settled before.
        parameters: All of the method's, as `MergeMethod.check` returns them.
        name: The weight's canonical name, for random numbers.
        seed: For random numbers.
        survey: What the method's `survey` made of the whole model, if it has one.
    """

    shape: tuple[int, ...]
    weights: tuple[float, ...]
    parameters: Mapping[str, Value] = field(default_factory=dict[str, Value])
    name: str = ""
    seed: int = 0
    survey: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of terms."""
        return len(self.weights)

    @property
    def rows(self) -> int:
        """Rows of the weight as a matrix."""
        return self.shape[0] if self.shape else 1

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    def number(self, name: str) -> float:
        """A parameter that is one number."""
        return cast("float", self.parameters[name])

    def numbers(self, name: str) -> tuple[float, ...]:
        """A parameter that may differ by term: one number for each."""
        value = self.parameters[name]
        if isinstance(value, tuple):
            return value
        return (self.number(name),) * self.count

    def choice(self, name: str) -> str:
        """A parameter that is one of some words."""
        return str(self.parameters[name])


class Work(ABC):
    """A method at work on one weight."""

    __slots__ = ()

    @property
    def passes(self) -> int:
        """How many passes over all tiles are left before `combine`."""
        return 0

    def observe(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """What one tile adds to the statistics of the present pass.

        Args:
            tiles: (T, rows, columns) of the terms: their changes against the base, or the weights
                themselves, as the method says (`MergeMethod.of`). Not written into.
            base: (rows, columns) of the base; None if there is none, or if the method takes changes.
            first_row: Of the tile, in the weight.
        """
        raise NotImplementedError

    def settle(self, total: Tensor) -> Work:
        """The work after a pass of which all statistics are added up."""
        raise NotImplementedError

    @abstractmethod
    def combine(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """One tile of the result; arguments as in `observe`, but that `tiles` may be overwritten.

        Returns:
            (rows, columns) float32: a change against the base if the method takes changes, else the
            weight; it may lie in the memory of `tiles`.
        """
        raise NotImplementedError

    def values(self) -> Tensor:
        """What this weight gives to the survey of the whole model, after all passes; one dimension."""
        raise NotImplementedError
