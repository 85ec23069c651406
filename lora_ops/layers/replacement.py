"""A replacement: the weight becomes what is stored, whatever it was. ComfyUI's own kind."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .layer import ChangeOfBase, Convention, by_role, check_fits


@dataclass(frozen=True, slots=True, eq=False)
class ReplacementLayer(ChangeOfBase):
    """Weight' = set_weight.

    Attributes:
        set_weight: The new weight, of the shape of the old one.
    """

    set_weight: Tensor

    @property
    def title(self) -> str:
        """What people call it."""
        return "replacement"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.set_weight.shape)

    @property
    def rank(self) -> int:
        """The largest rank that a weight of this shape can have; 1 for a vector or a number."""
        if self.set_weight.ndim < 2:
            return 1
        return min(self.shape[0], math.prod(self.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the new weight as stored."""
        return self.set_weight.dtype

    def tensors(self) -> dict[str, Tensor]:
        """The one tensor, by its role."""
        return by_role(set_weight=self.set_weight)

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype = torch.float32,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return the new weight less the old; nothing at strength 0, the same at every other.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        check_fits(self, base)
        if strength == 0:
            return torch.zeros_like(base, dtype=dtype)
        return self.set_weight.to(base.device, dtype).reshape(base.shape) - base.to(dtype)
