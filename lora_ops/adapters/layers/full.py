"""A change stored whole, for weights too small or too thin for factors: norms, biases, tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...elements import Element, element_in
from .families import OwnChange
from .layer import Layer, multiplied
from .matrix import beside_identity


@dataclass(frozen=True, slots=True, eq=False)
class FullLayer(OwnChange):
    """The difference itself.

    Attributes:
        diff: Shape of the parameter it changes, any float dtype.
    """

    diff: Tensor

    has_factors: ClassVar[bool] = False
    is_full: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """What people call it."""
        return "full difference"

    @property
    def rank(self) -> int:
        """The largest rank a difference of this shape can have; 1 for a vector or a number."""
        if self.diff.ndim < 2:
            return 1
        return min(self.diff.shape[0], math.prod(self.diff.shape[1:]))

    @property
    def scale(self) -> float:
        """Always 1: a full difference is applied as it is."""
        return 1.0

    @property
    def element(self) -> Element:
        """What the numbers of the difference are, as stored."""
        return element_in(self.diff)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter it changes."""
        return tuple(self.diff.shape)

    def tensors(self) -> dict[str, Tensor]:
        """The one tensor, by its role."""
        return {"diff": self.diff}

    def times(self, target: str, strength: float, *, has_alpha: bool) -> Layer:
        """Return the difference times a strength.

        Raises:
            NonFiniteError: A number is then out of the range of what stores it.
        """
        return self if strength == 1 else FullLayer(multiplied(target, self.diff, strength))

    def at_scale(self, scale: float) -> Layer:
        """Return the difference times a scale, float32."""
        return self if scale == 1 else FullLayer(self.diff.float() * scale)

    def with_rows(self, take: Callable[[Tensor], Tensor]) -> Layer:
        """Return some rows of the difference."""
        return FullLayer(take(self.diff))

    def delta(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the change in ``dtype``, in the shape of the parameter."""
        dtype = dtype or torch.float32
        return self.diff.to(dtype)

    def factors(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the difference as a matrix (out, in * kernel), float32, beside an identity.

        A vector is a column, a number a matrix of one.
        """
        flat = self.diff.float().reshape(len(self.diff) if self.diff.ndim else 1, -1)
        return beside_identity(flat * strength)
