"""AdaLoRA of PEFT: a LoRA whose directions each have a number, of which training keeps the important ones.

Zhang et al. (2023), arXiv:2303.10512.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...elements import Element, element_in
from ...errors import LayerShapeError
from .families import OwnChange
from .layer import Layer, by_role, multiplied


@dataclass(frozen=True, slots=True, eq=False)
class AdaLoraLayer(OwnChange):
    """delta = scale * left @ diag(values) @ right.

    Attributes:
        left: (out, rank).
        right: (rank, in).
        values: (rank, 1).
        told: The scale, which only the configuration has: alpha over the rank that training began with.

    Raises:
        LayerShapeError: The factors do not fit together.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    told: float = 1.0

    is_peft_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        shapes = [tuple(one.shape) for one in (self.left, self.values, self.right)]
        if (
            any(len(one) != 2 for one in shapes)
            or len({shapes[0][1], shapes[1][0], shapes[2][0]}) > 1
        ):
            raise LayerShapeError(
                f"left is {shapes[0]}, values are {shapes[1]}, right is {shapes[2]}: they have no rank in common"
            )

    @property
    def title(self) -> str:
        """AdaLoRA."""
        return "AdaLoRA"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """How many directions are left."""
        return self.right.shape[0]

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.told

    @property
    def element(self) -> Element:
        """What the numbers of the factors are, as stored."""
        return element_in(self.right)

    def tensors(self) -> dict[str, Tensor]:
        """The three tensors by role."""
        return by_role(left=self.left, right=self.right, values=self.values)

    def at_scale(self, scale: float) -> Layer:
        """Return the layer at a scale."""
        return replace(self, told=scale)

    def times(self, target: str, strength: float, *, has_alpha: bool) -> Layer:
        """Return the layer with a strength in its values.

        Raises:
            NonFiniteError: One is then out of the range of its dtype.
        """
        return replace(self, values=multiplied(target, self.values, strength))

    def factors(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return up (out, rank) and down (rank, in), float32, with values, scale and strength in up."""
        values = self.values.float().flatten() * (self.scale * strength)
        return self.left.float() * values, self.right.float()

    def delta(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the change (out, in), multiplied out in ``dtype``."""
        dtype = dtype or torch.float32
        up = self.left.to(dtype) * self.values.to(dtype).flatten()
        return (up @ self.right.to(dtype)).mul_(self.scale)
