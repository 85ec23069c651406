"""Steps: what is added to a weight, from which terms, and what is said of it afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...errors import NonFiniteError
from ...models.architectures import Parameter, Piece
from ...report import LayerReport, Skip
from .terms import Rows, Stored


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of a change, as Frobenius norms.

    Attributes:
        norm: Of the change as meant.
        moved: Of the change as stored: written - base.
        lost: Of the difference of the two.
        base: Of the weight that is changed.
        share: Of the numbers, those that were measured; the norms are as if the others were like them.
    """

    norm: float
    moved: float
    lost: float
    base: float
    share: float = 1.0

    @property
    def cosine(self) -> float:
        """Of the stored change with the one meant; 1 where it survived, 0 where nothing is left."""
        if not self.norm or not self.moved:
            return 0.0
        cosine = (self.norm**2 + self.moved**2 - self.lost**2) / (2 * self.norm * self.moved)
        return max(-1.0, min(1.0, cosine))

    @property
    def gain(self) -> float:
        """How much of the change meant is in the stored one: their inner product over its square."""
        return self.cosine * self.moved / self.norm if self.norm else 0.0

    @staticmethod
    def joined(tiles: list[tuple[float, float, float, float]], share: float = 1.0) -> Measured:
        """Of a whole weight, from its tiles, of which a share was measured."""
        columns = zip((0.0, 0.0, 0.0, 0.0), *tiles, strict=True)
        norm, moved, lost, base = (math.hypot(*column) for column in columns)
        return Measured(norm, moved, lost, base, share)


class Put(Protocol):
    """Takes the result, piece by piece."""

    def __call__(self, start: int, piece: Tensor, /, beside: str = "") -> None:
        """Take a piece.

        Args:
            start: Its first element.
            piece: The numbers, which may change afterwards.
            beside: Key of the tensor that it is of; that of the weight where there is none.
        """
        ...


class Step(Protocol):
    """One parameter of the output, and what is added to it. Steps on steps are one: a sum."""

    @property
    def parameter(self) -> Parameter:
        """Where it lies in the checkpoint that the output begins as."""
        ...

    @property
    def place(self) -> tuple[Parameter, Piece | None]:
        """The model's parameter, and which piece of it this is, where it lies in pieces."""
        ...

    @property
    def every(self) -> int:
        """One in how many rows of a large weight is measured: that takes longer than adding up."""
        ...

    def change(self, weight: Stored, dtype: torch.dtype) -> Rows:
        """Open what is added, for one job.

        Args:
            weight: The parameter as the checkpoint has it.
            dtype: What to compute in.
        """
        ...

    def report(self, change: Rows, measured: Measured) -> LayerReport | Skip:
        """Return what is said of it."""
        ...

    def not_finite(self, weight: Tensor, change: Tensor) -> NonFiniteError | None:
        """Return whose fault it is that a tile is not finite; None where the sum is, but too large.

        Args:
            weight: Rows of the parameter.
            change: The same rows of what is added.
        """
        ...


def not_numbers(numbers: Tensor, what: str, way_out: str, target: str) -> NonFiniteError | None:
    """Return the error for numbers of which some are none.

    Args:
        numbers: Of any shape.
        what: What they are, for the message.
        way_out: What to do.
        target: Of which weight.
    """
    nan, infinite = int(numbers.isnan().sum()), int(numbers.isinf().sum())
    if not nan and not infinite:
        return None
    return NonFiniteError(
        f"{what} holds {nan} NaN and {infinite} infinite values; the file is damaged, or "
        f"its training diverged: {way_out}",
        target=target,
    )
