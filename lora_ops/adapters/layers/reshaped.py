"""A layer for a weight that has to grow first: ComfyUI's `reshape_weight`, of Flux control LoRAs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...elements import Element
from ...errors import LayerShapeError, WeightShapeError
from .layer import Convention, Layer, fits


@dataclass(frozen=True, slots=True, eq=False)
class ReshapedLayer(Layer):
    """The inner layer's change, on the weight padded with zeros at the end of each axis.

    Attributes:
        inner: What changes the larger weight.
        reshape_weight: The larger shape, as stored: a row of integers.

    Raises:
        LayerShapeError: It is not the shape that the inner layer is for.
    """

    inner: Layer
    reshape_weight: Tensor

    def __post_init__(self) -> None:
        if self.reshape_weight.ndim != 1 or not fits(self.inner.shape, self.size):
            raise LayerShapeError(
                f"reshape_weight is {self.reshape_weight.tolist()}, its layer is {self.inner.shape}"
            )

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of the weight once it has grown."""
        return tuple(int(one) for one in self.reshape_weight.tolist())

    @property
    def title(self) -> str:
        """Kind of the inner layer, and that the weight grows."""
        return f"reshaping {self.inner.title}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight once it has grown."""
        return self.size

    @property
    def rank(self) -> int:
        """Rank of the inner layer."""
        return self.inner.rank

    @property
    def scale(self) -> float:
        """Scale of the inner layer."""
        return self.inner.scale

    @property
    def element(self) -> Element:
        """What the numbers of the inner layer are."""
        return self.inner.element

    @property
    def needs_base(self) -> bool:
        """Whether the inner layer needs the base weight."""
        return self.inner.needs_base

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role, as a file holds them: the inner layer's and the shape."""
        return {**self.inner.tensors(), "reshape_weight": self.reshape_weight}

    def delta(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the inner layer's change."""
        dtype = dtype or torch.float32
        return self.inner.delta(dtype)

    def factors(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the inner layer's factors."""
        return self.inner.factors(strength)

    def in_dtype(self, target: str, dtype: torch.dtype) -> Layer:
        """Return the inner layer in another dtype, for the same weight.

        Raises:
            NonFiniteError: A number is beyond the range of the dtype.
        """
        return replace(self, inner=self.inner.in_dtype(target, dtype))

    def times(self, target: str, strength: float, *, has_alpha: bool) -> Layer:
        """Return the inner layer with a strength in it, for the same weight.

        Raises:
            NonFiniteError, UnsupportedLayerError: As the inner layer does.
        """
        return replace(self, inner=self.inner.times(target, strength, has_alpha=has_alpha))

    def padded(self, base: Tensor) -> Tensor:
        """Return the weight in its new shape, zeros at the end of each axis that grew.

        Raises:
            WeightShapeError: It has other axes, or is larger.
        """
        if base.ndim != len(self.size) or any(
            old > new for old, new in zip(base.shape, self.size, strict=True)
        ):
            raise WeightShapeError(
                f"a weight of shape {tuple(base.shape)} cannot grow to {self.size}; the adapter is "
                "for another model"
            )
        result = base.new_zeros(self.size)
        result[tuple(slice(size) for size in base.shape)] = base
        return result

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the padded weight, of the new shape.

        Raises:
            WeightShapeError: The weight cannot grow to it.
        """
        dtype = dtype or torch.float32
        return self.inner.change(self.padded(base), strength, dtype, convention)


def unpadded(layer: Layer) -> Layer:
    """Return what changes the larger weight, of a layer for one that has to grow, or the layer itself."""
    return layer.inner if isinstance(layer, ReshapedLayer) else layer


def rewrapped(layer: Layer, *like: Layer) -> Layer:
    """Return a layer for a weight that has to grow first, where one of its parts is for one."""
    for one in like:
        if isinstance(one, ReshapedLayer):
            return ReshapedLayer(layer, one.reshape_weight)
    return layer
