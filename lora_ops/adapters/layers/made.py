"""A change on its way from another kind to a LoRA: made when it is asked for, never written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...elements import Element
from .families import KroneckerProduct, OwnChange
from .layer import Layer


@dataclass(frozen=True, slots=True, eq=False)
class MadeLayer(OwnChange):
    """The change of a layer of another kind, exact: what a LoRA in its place is to approximate.

    Attributes:
        kind: What people call the layer that it is made of.
        size: Shape of the weight, (out, in, *kernel).
        directions: The rank that this layer says it has.
        stored: What its numbers are.
        is_dense: Whether factors of the change would take more room than the change itself.
        make: Makes the change anew, in float32: a full difference where it is dense, the LoKr that it
            is where that is `is_kron`, else a LoRA.
        is_kron: Whether it is a Kronecker product of two small matrices, and stays one.
    """

    kind: str
    size: tuple[int, ...]
    directions: int
    stored: Element
    is_dense: bool
    make: Callable[[], Layer]
    is_kron: bool = False

    @property
    def title(self) -> str:
        """Kind of the layer that the change is made of."""
        return self.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes."""
        return self.size

    @property
    def rank(self) -> int:
        """Rank of the layer that the change is made of; a dense change exceeds it."""
        return self.directions

    @property
    def scale(self) -> float:
        """Always 1: the scale is in the change already."""
        return 1.0

    @property
    def element(self) -> Element:
        """What the numbers are of the layer that the change is made of."""
        return self.stored

    def kronecker(self) -> KroneckerProduct | None:
        """What it is made as, where that is a Kronecker product."""
        return self.make().kronecker() if self.is_kron else None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the change by role."""
        return self.make().tensors()

    def times(self, target: str, strength: float, *, has_alpha: bool) -> Layer:
        """Return the change times a strength, made as this is."""
        if strength == 1:
            return self
        return replace(self, make=lambda: self.make().times(target, strength, has_alpha=True))

    def delta(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the change, of `shape`."""
        dtype = dtype or torch.float32
        return self.make().delta(dtype).reshape(self.size)

    def factors(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return up (out, r) and down (r, in * kernel), float32, whose product is the change."""
        return self.make().factors(strength)
