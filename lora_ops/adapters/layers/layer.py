"""What all kinds of layers share: their face, and the two families that they fall into.

A layer either has a change of its own (LoRA, LoHa, LoKr, a full difference), or says how to make one
from the weight that it changes (GLoRA, OFT, BOFT, IA3, DoRA, a replacement).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from ...errors import UnsupportedLayerError, WeightShapeError

# How a kind is read on which programs differ: as its paper and its authors' program define it, or
# as ComfyUI applies it.
Convention = Literal["paper", "comfy"]


class Layer(Protocol):
    """What the change of one weight is."""

    __slots__ = ()

    @property
    def title(self) -> str:
        """What people call the kind: LoRA, LoHa, ..."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes, (out, in, *kernel); -1 for a side that it does not tell.

        A convolution whose factors are stored flat has (out, in * kernel).
        """
        ...

    @property
    def rank(self) -> int:
        """The largest rank that its change can have by the sizes of its factors."""
        ...

    @property
    def scale(self) -> float:
        """What its factors are multiplied by."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its numbers as stored."""
        ...

    @property
    def needs_base(self) -> bool:
        """Whether its change depends on the weight it changes, so that `change` alone can tell it."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by role, as a file holds them; alpha as a float32 scalar."""
        ...

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the change at strength 1, of `shape`, computed in ``dtype``.

        Raises:
            UnsupportedLayerError: It depends on the base weight.
        """
        ...

    def factors(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return up (out, rank) and down (rank, in * kernel), float32, whose product is the change.

        Exact. Scale and `strength` are in up. Where the rank is no smaller than a side of the
        weight, one of the two is an identity.

        Raises:
            UnsupportedLayerError: It depends on the base weight.
        """
        ...

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype = torch.float32,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the weight at a strength: of its shape, on its device, in ``dtype``.

        Args:
            base: The weight; not written into.
            strength: The user's factor; 0 changes nothing, 1 is what was trained.
            dtype: What to compute in.
            convention: How to read a kind on which programs differ; see docs/kinds.md.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        ...


class OwnChange(Layer, Protocol):
    """The family whose change is there without the weight, and proportional to the strength."""

    __slots__ = ()

    @property
    def needs_base(self) -> bool:
        """Never: the factors alone make the change."""
        return False

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype = torch.float32,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return strength * delta in the shape of the weight; all programs agree.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        check_fits(self, base)
        return (self.delta(dtype) * strength).reshape(base.shape).to(base.device)


class ChangeOfBase(Layer, Protocol):
    """The family whose change is made from the weight."""

    __slots__ = ()

    @property
    def needs_base(self) -> bool:
        """Always: without the weight there is no change."""
        return True

    @property
    def scale(self) -> float:
        """Always 1, unless the kind says otherwise."""
        return 1.0

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Refuse: the change depends on the weight; see `change`.

        Raises:
            UnsupportedLayerError: Always.
        """
        raise _without_base(self.title)

    def factors(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Refuse: the change depends on the weight; see `change`.

        Raises:
            UnsupportedLayerError: Always.
        """
        raise _without_base(self.title)


def fits(shape: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether a layer of one shape can change a weight of another.

    Trailing ones do not count: a linear and a 1x1 convolution hold the same numbers. A layer of two
    axes may hold the kernel flat.
    """
    if -1 in shape:
        return len(weight) >= 2 and all(
            one in (-1, other) for one, other in zip(shape, weight, strict=False)
        )
    if len(shape) == 2 and len(weight) > 2:
        return tuple(shape) == (weight[0], math.prod(weight[1:]))
    return _plain(shape) == _plain(weight)


def check_fits(layer: Layer, base: Tensor) -> None:
    """Refuse a weight that is not the layer's.

    Raises:
        WeightShapeError: Their shapes differ.
    """
    if not fits(layer.shape, base.shape):
        raise WeightShapeError(
            f"a {layer.title} layer changes a weight of shape {layer.shape}, this one is "
            f"{tuple(base.shape)}; the adapter is for another model"
        )


def by_role(alpha: float | None = None, **tensors: Tensor | None) -> dict[str, Tensor]:
    """Return those tensors that there are, and alpha as a float32 scalar."""
    roles = {role: tensor for role, tensor in tensors.items() if tensor is not None}
    if alpha is not None:
        roles["alpha"] = torch.tensor(alpha, dtype=torch.float32)
    return roles


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)


def _without_base(title: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"a {title} layer has no change of its own: it is made from the base weight; "
        "give the base checkpoint, or use a plain LoRA"
    )
