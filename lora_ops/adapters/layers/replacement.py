"""A replacement: the weight, or some of its rows, become what is stored, whatever they were.

Of the whole weight ComfyUI's own kind, and what PEFT trains beside a LoRA; of rows PEFT's new tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...elements import Element, element_in
from ...errors import WeightShapeError
from .families import ChangeOfBase
from .layer import Convention, by_role, check_fits


@dataclass(frozen=True, slots=True, eq=False)
class ReplacementLayer(ChangeOfBase):
    """Weight' = set_weight.

    Attributes:
        set_weight: The new weight, of the shape of the old one.
    """

    set_weight: Tensor

    has_factors: ClassVar[bool] = False

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
    def element(self) -> Element:
        """What the numbers of the new weight are, as stored."""
        return element_in(self.set_weight)

    def tensors(self) -> dict[str, Tensor]:
        """The one tensor, by its role."""
        return by_role(set_weight=self.set_weight)

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return the new weight less the old; nothing at strength 0, the same at every other.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        dtype = dtype or torch.float32
        check_fits(self, base)
        if strength == 0:
            return torch.zeros_like(base, dtype=dtype)
        return self.set_weight.to(base.device, dtype).reshape(base.shape) - base.to(dtype)


@dataclass(frozen=True, slots=True, eq=False)
class NewRowsLayer(ChangeOfBase):
    """Weight'[tokens] = rows: new vectors for some words of an embedding.

    Attributes:
        rows: (words, width).
        tokens: The rows of the weight that they replace, in order.
    """

    rows: Tensor
    tokens: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """What people call it."""
        return "new tokens"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, (-1, width): an embedding of any number of words."""
        return (-1, *self.rows.shape[1:])

    @property
    def rank(self) -> int:
        """Number of rows, and no more than the width of a row."""
        return min(len(self.rows), math.prod(self.rows.shape[1:]))

    @property
    def element(self) -> Element:
        """What the numbers of the rows are, as stored."""
        return element_in(self.rows)

    def tensors(self) -> dict[str, Tensor]:
        """The one tensor, by its role."""
        return by_role(rows=self.rows)

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return the new rows less the old; nothing at strength 0, the same at every other.

        Raises:
            WeightShapeError: The weight has other rows, or not as many.
        """
        dtype = dtype or torch.float32
        check_fits(self, base)
        if len(self.tokens) != len(self.rows) or not all(0 <= t < len(base) for t in self.tokens):
            raise WeightShapeError(
                f"{len(self.rows)} new rows for the tokens {list(self.tokens)} of a weight of "
                f"{len(base)} rows: the configuration is of another file, or model"
            )
        change = torch.zeros_like(base, dtype=dtype)
        if strength:
            old = base[list(self.tokens)].to(dtype)
            change[list(self.tokens)] = self.rows.to(base.device, dtype) - old
        return change
