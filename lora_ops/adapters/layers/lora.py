"""The low-rank change: two thin factors, and for Tucker's form of a convolution a core between them.

Shapes and scale as in Hu et al. (2021), arXiv:2106.09685, in the storage of kohya's scripts; the
core as in LyCORIS (Yeh et al., 2023, arXiv:2309.14859).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...elements import Element, as_element, element_in, loadable
from ...errors import LayerShapeError
from ...linalg import distance, inner
from .families import OwnChange, Scaled
from .layer import Layer, by_role, multiplied


@dataclass(frozen=True, slots=True, eq=False)
class LoraLayer(Scaled, OwnChange):
    """delta = scale * up @ mid @ down, with the kernel on the input side.

    Attributes:
        up: (out, rank, 1...); the trailing ones may be absent.
        down: (rank, in, *kernel); the kernel is all ones where ``mid`` holds it.
        alpha: The stored number; None where the file has none.
        mid: Tucker core (rank of up, rank of down, *kernel), or None.

    Raises:
        LayerShapeError: The factors do not fit together.
    """

    up: Tensor
    down: Tensor
    alpha: float | None = None
    mid: Tensor | None = None

    def __post_init__(self) -> None:
        up, down, mid = tuple(self.up.shape), tuple(self.down.shape), self.mid
        if len(up) < 2 or len(down) < 2:
            raise LayerShapeError(f"up is {up} and down is {down}: a factor has two axes or more")
        if 0 in up or 0 in down:
            raise LayerShapeError(f"up is {up} and down is {down}: an axis is empty")
        if any(size != 1 for size in up[2:]):
            raise LayerShapeError(
                f"up is {up}: the kernel belongs to down, so {up[2:]} must be ones"
            )
        if mid is None:
            if up[1] != down[0]:
                raise LayerShapeError(
                    f"up is {up} and down is {down}: their ranks, {up[1]} and {down[0]}, differ"
                )
            return
        core = tuple(mid.shape)
        if core[:2] != (up[1], down[0]):
            raise LayerShapeError(
                f"mid is {core}: between up {up} and down {down} it must begin {(up[1], down[0])}"
            )
        if any(size != 1 for size in down[2:]):
            raise LayerShapeError(f"down is {down} beside mid {core}: only one can hold the kernel")

    @property
    def title(self) -> str:
        """LoRA."""
        return "LoRA"

    @property
    def rank(self) -> int:
        """Inner size, the first axis of down: what alpha is divided by."""
        return self.down.shape[0]

    @property
    def element(self) -> Element:
        """What the numbers of the factors are, as stored."""
        return element_in(self.down)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes, (out, in, *kernel)."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    @property
    def factor_rank(self) -> int:
        """Inner size of the factors: what alpha is divided by."""
        return self.down.shape[0]

    @property
    def inner_rank(self) -> int:
        """Inner size of `factors`: of a core, where it meets up."""
        return self.up.shape[1]

    @property
    def is_pair(self) -> bool:
        """Whether it is up and down alone."""
        return self.mid is None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the layer by role, as a file holds them; alpha as a float32 scalar."""
        return by_role(self.alpha, up=self.up, down=self.down, mid=self.mid)

    def factors(
        self, strength: float = 1.0, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return up (out, r) and down (r, in * kernel), in ``dtype``, whose product is the change.

        Scale and `strength` are in up, Tucker's core in down. Fresh memory, except where nothing
        is to be done.
        """
        dtype = dtype or torch.float32
        up, down = self.up.to(dtype).flatten(1), self.down.to(dtype).flatten(1)
        if self.mid is not None:
            core = torch.einsum("pq...,qi->pi...", self.mid.to(dtype), down)
            down = core.flatten(1)
        factor = self.scale * strength
        return (up if factor == 1 else up * factor), down

    def times(self, target: str, strength: float, *, has_alpha: bool) -> Layer:
        """Return the layer with a strength in its alpha, or with its whole scale in up.

        Raises:
            NonFiniteError: A number is then out of the range of what stores it.
        """
        if has_alpha:
            return Scaled.times(self, target, strength, has_alpha=True)
        factor, element = self.scale * strength, loadable(self.element)
        if factor == 1:
            return replace(self, alpha=None)
        up = multiplied(target, self.up, factor, element)
        return replace(self, up=up, down=as_element(self.down, element), alpha=None)

    def with_rows(self, take: Callable[[Tensor], Tensor]) -> Layer:
        """Return the layer with other rows of up."""
        return replace(self, up=take(self.up))

    def norm(self, dtype: torch.dtype | None = None) -> Tensor:
        """Frobenius norm of the change, float64, from its factors in ``dtype``."""
        dtype = dtype or torch.float64
        up, down = self.factors(dtype=dtype)
        return inner(up, down, up, down).clamp(min=0).sqrt()

    def missed(
        self, other: Layer, strength: float = 1.0, dtype: torch.dtype | None = None
    ) -> float:
        """Frobenius norm of the change at a strength less that of another layer, from factors."""
        dtype = dtype or torch.float64
        if not isinstance(other, LoraLayer):
            return OwnChange.missed(self, other, strength, dtype)
        up, down = self.factors(strength, dtype)
        other_up, other_down = other.factors(1.0, dtype)
        if other_down.shape == down.shape and torch.equal(other_down, down):
            lost = up - other_up
            return float(inner(lost, down, lost, down).clamp(min=0).sqrt())
        return float(distance(up, down, other_up, other_down))

    def delta(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the change (out, in, *kernel), multiplied out in ``dtype``."""
        dtype = dtype or torch.float32
        down = self.down.to(dtype)
        if self.mid is not None:
            kernel = self.mid.shape[2:]
            flat = down.flatten(1)
            down = torch.einsum("pq...,qi->pi...", self.mid.to(dtype), flat)
            down = down.reshape(self.up.shape[1], flat.shape[1], *kernel)
        up = self.up.to(dtype).flatten(1)
        return (up @ down.flatten(1)).mul_(self.scale).reshape(up.shape[0], *down.shape[1:])


def low_rank(
    up: Tensor, down: Tensor, shape: Sequence[int], alpha: float | None = None
) -> LoraLayer:
    """Return the layer with these factors in the form of the weight it changes.

    Args:
        up: (out, rank).
        down: (rank, in * kernel).
        shape: Of the weight, (out, in, *kernel): the kernel stays with down.
        alpha: The number to store; None: none, which is scale 1.
    """
    rank, kernel = down.shape[0], tuple(shape[2:])
    return LoraLayer(
        up.reshape(shape[0], rank, *(1 for _ in kernel)),
        down.reshape(rank, shape[1], *kernel),
        alpha,
    )
