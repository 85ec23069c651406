"""IA3: each channel of the output, or of the input, is multiplied by a number.

Liu et al. (2022), arXiv:2205.05638; storage of LyCORIS, which keeps that number less 1, and of PEFT,
whose gains of outputs multiply the bias too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...elements import Element, element_in
from ...errors import LayerShapeError, UnsupportedLayerError
from .families import ChangeOfBase
from .layer import Convention, Layer, by_role, check_fits, multiplied

GAINS_OF_WHAT = (
    "only the configuration tells whether these gains of IA3 are of the inputs or of the outputs, "
    "and there is none; give the adapter with its `adapter_config.json`"
)
"""What is wrong with a `PeftIa3Layer` that has no axis."""


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

    is_proportional: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """IA3."""
        return "IA3"

    @property
    def axis(self) -> int:
        """The weight's axis that the gains lie along: 0 for the output, 1 for the input."""
        return int(bool(self.on_input.item()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight: the number of gains on their side, -1 (any size) on the other."""
        count = self.weight.numel()
        return (-1, count) if self.axis else (count, -1)

    @property
    def rank(self) -> int:
        """Number of gains: each multiplies one row or column of the weight."""
        return self.weight.numel()

    @property
    def element(self) -> Element:
        """What the numbers of the gains are, as stored."""
        return element_in(self.weight)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role, as a file holds them."""
        return by_role(weight=self.weight, on_input=self.on_input)

    def stored_numbers(self) -> dict[str, Tensor]:
        """The gains alone."""
        return by_role(weight=self.weight)

    def times(self, target: str, strength: float, *, has_alpha: bool) -> Layer:
        """Return the layer with its gains times a strength.

        Raises:
            NonFiniteError: A number is then out of the range of what stores it.
        """
        if strength == 1:
            return self
        return replace(self, weight=multiplied(target, self.weight, strength))

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the weight, of its shape; proportional to the strength.

        ComfyUI does not read IA3; what is returned is what A1111 and LyCORIS add.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        dtype = dtype or torch.float32
        check_fits(self, base)
        return _times(base.to(dtype), self.weight.to(base.device, dtype) * strength, self.axis)


@dataclass(frozen=True, slots=True, eq=False)
class PeftIa3Layer(ChangeOfBase):
    """Weight' = weight * gain, one gain a channel, as PEFT stores them.

    Attributes:
        gains: (out, 1), (1, in), or (1, channels, 1...) of a convolution's inputs or outputs.
        on_input: Whether the gains are of the input, as the configuration says; None without one.

    Raises:
        LayerShapeError: The gains are of none of these shapes.
    """

    gains: Tensor
    on_input: bool | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.gains.shape)
        lies_along = [axis for axis, size in enumerate(shape) if size != 1]
        if len(shape) < 2 or lies_along not in ([], [1], [0] if len(shape) == 2 else []):
            raise LayerShapeError(
                f"ia3_l is {shape}: it is (out, 1), (1, in), or (1, channels, 1...) of a convolution"
            )
        if 0 in shape:
            raise LayerShapeError(f"ia3_l is {shape}: it has no gains")

    @property
    def title(self) -> str:
        """IA3, as PEFT stores it."""
        return "IA3 of PEFT"

    @property
    def axis(self) -> int | None:
        """The weight's axis that the gains lie along: 0 for the output, 1 for the input.

        None where neither the gains' shape nor a configuration tells.
        """
        if self.gains.ndim == 2 and self.gains.numel() > 1:
            return int(self.gains.shape[0] == 1)
        return None if self.on_input is None else int(self.on_input)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight: the number of gains on their side, -1 (any size) on the others."""
        count = self.gains.numel()
        if self.axis is None:
            return (-1, -1)
        return (-1, count) if self.axis else (count, -1)

    @property
    def rank(self) -> int:
        """Number of gains: each multiplies one row or column of the weight."""
        return self.gains.numel()

    @property
    def element(self) -> Element:
        """What the numbers of the gains are, as stored."""
        return element_in(self.gains)

    @property
    def bias(self) -> BiasGainsLayer | None:
        """What the gains do to the bias of their module; None for gains of the input: nothing."""
        return BiasGainsLayer(self.gains) if self.axis == 0 else None

    def tensors(self) -> dict[str, Tensor]:
        """The tensor by its role, as a file holds it."""
        return by_role(gains=self.gains)

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the weight, of its shape; proportional to the strength.

        PEFT has no strength, ComfyUI does not read it.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
            UnsupportedLayerError: Nothing tells whether the gains are of inputs or of outputs.
        """
        dtype = dtype or torch.float32
        if self.axis is None:
            raise UnsupportedLayerError(GAINS_OF_WHAT)
        check_fits(self, base)
        gains = (self.gains.to(base.device, dtype) - 1) * strength
        return _times(base.to(dtype), gains, self.axis)


@dataclass(frozen=True, slots=True, eq=False)
class BiasGainsLayer(ChangeOfBase):
    """Bias' = bias * gain: what PEFT's IA3 of outputs does beside the weight.

    Attributes:
        gains: One for each number of the bias, in any shape.
    """

    gains: Tensor

    @property
    def title(self) -> str:
        """PEFT's IA3 of a bias."""
        return "IA3 of PEFT, of the bias"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the bias, (out,)."""
        return (self.gains.numel(),)

    @property
    def rank(self) -> int:
        """1, as for every vector."""
        return 1

    @property
    def element(self) -> Element:
        """What the numbers of the gains are, as stored."""
        return element_in(self.gains)

    def tensors(self) -> dict[str, Tensor]:
        """The tensor by its role, as a file holds it."""
        return by_role(gains=self.gains)

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the bias, of its shape; proportional to the strength.

        Raises:
            WeightShapeError: The layer is for a bias of another length.
        """
        dtype = dtype or torch.float32
        check_fits(self, base)
        return _times(base.to(dtype), (self.gains.to(base.device, dtype) - 1) * strength, 0)


def _times(base: Tensor, gains: Tensor, axis: int) -> Tensor:
    """The weight with each channel along an axis times its number."""
    return base * gains.reshape([-1 if i == axis else 1 for i in range(base.ndim)])
