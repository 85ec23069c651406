"""AdaLoRA of PEFT: a LoRA whose directions each have a number, of which training keeps the important ones.

Zhang et al. (2023), arXiv:2303.10512.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import LayerShapeError
from .families import OwnChange
from .layer import Layer, by_role, multiplied


@dataclass(frozen=True, slots=True, eq=False)
class AdaLoraLayer(OwnChange):
    """delta = scale * up @ diag(values) @ down.

    Attributes:
        up: (out, rank).
        down: (rank, in).
        values: (rank, 1).
        told: The scale, which only the configuration has: alpha over the rank that training began with.

    Raises:
        LayerShapeError: The factors do not fit together.
    """

    up: Tensor
    down: Tensor
    values: Tensor
    told: float = 1.0

    is_peft_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        shapes = [tuple(one.shape) for one in (self.up, self.values, self.down)]
        if (
            any(len(one) != 2 for one in shapes)
            or len({shapes[0][1], shapes[1][0], shapes[2][0]}) > 1
        ):
            raise LayerShapeError(
                f"up is {shapes[0]}, values are {shapes[1]}, down is {shapes[2]}: they have no rank in common"
            )

    @property
    def title(self) -> str:
        """AdaLoRA."""
        return "AdaLoRA"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        """How many directions are left."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.told

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the factors as stored."""
        return self.down.dtype

    def tensors(self) -> dict[str, Tensor]:
        """The three tensors by role."""
        return by_role(up=self.up, down=self.down, values=self.values)

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
        return self.up.float() * values, self.down.float()

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the change (out, in), multiplied out in ``dtype``."""
        up = self.up.to(dtype) * self.values.to(dtype).flatten()
        return (up @ self.down.to(dtype)).mul_(self.scale)
