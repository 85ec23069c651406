"""IA3: each channel of the output, or of the input, is multiplied by a number.

Liu et al. (2022), arXiv:2205.05638; storage of LyCORIS, which keeps that number less 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LayerShapeError
from .layer import ChangeOfBase, Convention, by_role, check_fits


@dataclass(frozen=True, slots=True, eq=False)
class Ia3Layer(ChangeOfBase):
    """Change = weight * gain, one gain a channel.

    Attributes:
        weight: The gains: (channels,), of a convolution (1, channels, 1...).
        on_input: A number, as stored: whether the channels are those of the input.

    Raises:
        LayerShapeError: The gains lie along more than one axis, or `on_input` is not one number.
    """

    weight: Tensor
    on_input: Tensor

    def __post_init__(self) -> None:
        if sum(size != 1 for size in self.weight.shape) > 1 or not self.weight.numel():
            raise LayerShapeError(f"weight is {tuple(self.weight.shape)}: it is one row of gains")
        if self.on_input.numel() != 1:
            raise LayerShapeError(f"on_input is {tuple(self.on_input.shape)}, not one number")

    @property
    def title(self) -> str:
        """IA3."""
        return "IA3"

    @property
    def axis(self) -> int:
        """Of the weight, along which the gains lie: 0 for the output, 1 for the input."""
        return int(bool(self.on_input.item()))

    @property
    def shape(self) -> tuple[int, ...]:
        """The side that the gains are of, and -1 for the other, which may be any."""
        count = self.weight.numel()
        return (-1, count) if self.axis else (count, -1)

    @property
    def rank(self) -> int:
        """As many as there are gains."""
        return self.weight.numel()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the gains as stored."""
        return self.weight.dtype

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role, as a file holds them."""
        return by_role(weight=self.weight, on_input=self.on_input)

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype = torch.float32,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the weight, of its shape; proportional to the strength.

        ComfyUI does not read IA3; what is returned is what A1111 and LyCORIS add.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        check_fits(self, base)
        gains = self.weight.to(dtype).reshape(
            [-1 if i == self.axis else 1 for i in range(base.ndim)]
        )
        return base.to(dtype) * (gains * strength)
