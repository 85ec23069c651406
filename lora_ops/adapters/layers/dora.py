"""DoRA: the changed weight's rows, or columns, are brought to lengths of their own.

Liu et al. (2024), arXiv:2402.09353. Over any kind that changes a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ...elements import Element
from ...errors import LayerShapeError, WeightShapeError
from .families import ChangeOfBase
from .layer import Convention, Layer, check_fits

# The role that the magnitudes have in a file: of kohya, LyCORIS and ComfyUI; and PEFT's.
Role = Literal["dora_scale", "magnitude"]


@dataclass(frozen=True, slots=True, eq=False)
class DoraLayer(ChangeOfBase):
    """Weight' = magnitude * (weight + change) / length, one magnitude a row or a column.

    Attributes:
        inner: The layer whose change is added before rows, or columns, get their lengths.
        magnitude: As stored: (out, 1...) or (1, in, 1...); in PEFT's files (out,) or (1, out, 1...).
        role: Which program's form the magnitudes have: their shape alone does not tell.

    Raises:
        LayerShapeError: There are as many magnitudes as neither rows nor columns.
    """

    inner: Layer
    magnitude: Tensor
    role: Role = "dora_scale"

    def __post_init__(self) -> None:
        shape, count = self.inner.shape, self.magnitude.numel()
        # Where the layer has its kernel in the input side, the weight alone tells the channels.
        whole = math.prod(shape[1:]) if self.axis else math.prod(shape[:1])
        if len(shape) < 2 or count == 0 or (whole > 0 and whole % count):
            raise LayerShapeError(
                f"{self.role} is {tuple(self.magnitude.shape)} over a layer of {shape}: it is one "
                "number an output channel, or one an input channel"
            )

    @property
    def title(self) -> str:
        """DoRA over the kind of the inner layer."""
        return f"DoRA over {self.inner.title}"

    @property
    def axis(self) -> int:
        """The weight's axis that the magnitudes lie along: 0 for the output, 1 for the input."""
        rows = self.magnitude.shape[:1] == self.inner.shape[:1]
        return 0 if self.role == "magnitude" or rows else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes."""
        return self.inner.shape

    @property
    def rank(self) -> int:
        """Rank of the inner change; that of the whole is bounded by the weight's shape alone."""
        return self.inner.rank

    @property
    def scale(self) -> float:
        """Scale of the inner layer."""
        return self.inner.scale

    @property
    def element(self) -> Element:
        """What the numbers of the inner layer are."""
        return self.inner.element

    def in_dtype(self, target: str, dtype: torch.dtype) -> Layer:
        """Return the magnitudes over the inner layer in another dtype.

        Raises:
            NonFiniteError: A number is beyond the range of the dtype.
        """
        return replace(self, inner=self.inner.in_dtype(target, dtype))

    def times(self, target: str, strength: float, *, has_alpha: bool) -> Layer:
        """Return the magnitudes over an inner layer whose scale is where the file has a place for it.

        Raises:
            NonFiniteError: A number is then out of the range of what stores it.
            UnsupportedLayerError: The strength is not 1.
        """
        if strength != 1:
            return ChangeOfBase.times(self, target, strength, has_alpha=has_alpha)
        return replace(self, inner=self.inner.times(target, 1.0, has_alpha=has_alpha))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role, as a file holds them: the inner layer's and the magnitudes."""
        return {**self.inner.tensors(), self.role: self.magnitude}

    def magnitudes(self, axes: int) -> Tensor:
        """The magnitudes in the form that ComfyUI and kohya read: (out, 1...) or (1, in, 1...).

        Args:
            axes: Number of axes of the weight.
        """
        return self.magnitude.reshape([-1 if i == self.axis else 1 for i in range(axes)])

    @property
    def dora_scale(self) -> Tensor:
        """The magnitudes as files of kohya, LyCORIS and ComfyUI hold them.

        Magnitudes that were read from such a file stay as they are: they have the weight's axes,
        which the layer does not know where it holds a kernel flat.
        """
        axes = max(len(self.shape), self.magnitude.ndim)
        stays = self.role == "dora_scale" and self.magnitude.ndim == axes
        return self.magnitude if stays else self.magnitudes(axes)

    def check_magnitudes(self, weight: Sequence[int]) -> None:
        """Refuse a weight, by its shape, that has another number of rows, or of columns.

        Raises:
            WeightShapeError: Says both shapes.
        """
        if self.magnitude.numel() != weight[self.axis]:
            raise WeightShapeError(
                f"{self.role} is {tuple(self.magnitude.shape)}, the weight {tuple(weight)}; the "
                "adapter is for another model"
            )

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the weight, of its shape; proportional to the strength.

        The length is that of the changed weight, as in the paper, PEFT and LyCORIS. Along the
        output ComfyUI takes that of the weight as it was. Both paper and programs train at strength
        1; at other strengths the change is multiplied, as in ComfyUI.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        dtype = dtype or torch.float32
        check_fits(self, base)
        self.check_magnitudes(base.shape)
        weight = base.to(dtype)
        changed = weight + self.inner.change(base, 1.0, dtype, convention)
        measured = weight if convention == "comfy" and self.axis == 0 else changed
        others = [axis for axis in range(base.ndim) if axis != self.axis]
        length = torch.linalg.vector_norm(measured, dim=others, keepdim=True)
        # A row of zeros has the length that ComfyUI and LyCORIS give it.
        length.clamp_(min=torch.finfo(torch.float32).eps)
        turned = changed.mul_(self.magnitudes(base.ndim).to(weight) / length)
        return turned.sub_(weight).mul_(strength)


@dataclass(frozen=True, slots=True, eq=False)
class BasedDoraLayer(DoraLayer):
    """DoRA with its weight at hand: the inner change can be cut, and what that loses be measured.

    Attributes:
        weight: Reads the weight.
        convention: By which convention the changed weight's length is taken; see `change`.
    """

    weight: Callable[[], Tensor] = field(kw_only=True)
    convention: Convention = field(default="paper", kw_only=True)

    @property
    def needs_base(self) -> bool:
        """Never: this layer holds the base weight itself."""
        return False

    def factors(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the factors of the inner change."""
        return self.inner.factors(strength)

    def over(self, inner: Layer) -> DoraLayer:
        """Return the magnitudes over another inner layer."""
        return DoraLayer(inner, self.magnitude, self.role)

    def measured(self, other: DoraLayer) -> tuple[float, float]:
        """Return the Frobenius norms of this change, and of its difference from another layer's."""
        weight = self.weight()
        exact, near = (
            one.change(weight, 1.0, torch.float64, self.convention) for one in (self, other)
        )
        return float(torch.linalg.vector_norm(exact)), float(torch.linalg.vector_norm(exact - near))
