"""OFT: the output channels are rotated, block by block.

Qiu et al. (2023), arXiv:2306.07280; storage of kohya's scripts and LyCORIS (Diag-OFT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...elements import Element, element_in
from ...errors import LayerShapeError
from .families import ChangeOfBase
from .layer import Convention, by_role, check_fits


@dataclass(frozen=True, slots=True, eq=False)
class Rotation(ChangeOfBase):
    """What OFT and BOFT have in common, which both rotate output channels in blocks.

    Attributes:
        blocks: (..., blocks, size, size), blocks * size = out.
        rescale: (out, 1...), or None.
        alpha: The stored number that bounds the rotation, see `rotations`; None without one.
    """

    blocks: Tensor
    rescale: Tensor | None = None
    alpha: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight: out, and -1 (any size) for the input side."""
        return (channels(self.blocks), -1)

    @property
    def rank(self) -> int:
        """Number of output channels: a rotation may change all of them."""
        return self.shape[0]

    @property
    def element(self) -> Element:
        """What the numbers of the blocks are, as stored."""
        return element_in(self.blocks)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role, as a file holds them; alpha as a float32 scalar."""
        return by_role(self.alpha, blocks=self.blocks, rescale=self.rescale)


@dataclass(frozen=True, slots=True, eq=False)
class OftLayer(Rotation):
    """Weight' = rescale * blockdiag(R_1, R_2, ...)^T @ weight, each R the rotation of one block.

    Attributes:
        blocks: (blocks, size, size), blocks * size = out.
        rescale: (out, 1...), or None.
        alpha: The stored number that bounds the rotation, see `rotations`; None without one.

    Raises:
        LayerShapeError: The blocks are not square, or rescale is not one number a channel.
    """

    def __post_init__(self) -> None:
        check_blocks(self.blocks, self.rescale, 3)

    @property
    def title(self) -> str:
        """OFT."""
        return "OFT"

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the weight, of its shape.

        The strength blends each rotation with the identity, as kohya and LyCORIS do, and rescale
        with 1. ComfyUI applies the strength twice, and no rescale.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        dtype = dtype or torch.float32
        check_fits(self, base)
        weight = base.to(dtype).flatten(1)
        turned = rotations(
            self.blocks.to(base.device, dtype), bound(self.alpha, len(base), convention)
        )
        blend = 1.0 if convention == "comfy" else strength
        count, size, _ = turned.shape
        result = blended(turned, blend).mT @ weight.reshape(count, size, -1)
        result = result.reshape(weight.shape)
        if convention == "comfy":
            return (result - weight).mul_(strength**2).reshape(base.shape)
        return (rescaled(result, self.rescale, strength) - weight).reshape(base.shape)


def check_blocks(blocks: Tensor, rescale: Tensor | None, axes: int) -> None:
    """Refuse blocks that are no square matrices, and a rescale of another number of channels.

    Raises:
        LayerShapeError: Says which, and their shapes.
    """
    shape = tuple(blocks.shape)
    if len(shape) != axes or 0 in shape or shape[-1] != shape[-2]:
        raise LayerShapeError(f"blocks are {shape}: {axes} axes, the last two alike")
    if rescale is not None and rescale.numel() != channels(blocks):
        raise LayerShapeError(
            f"rescale is {tuple(rescale.shape)}: blocks {shape} make {channels(blocks)} channels"
        )


def bound(alpha: float | None, out: int, convention: Convention) -> float:
    """Return the largest norm that the blocks may have together; 0 for none.

    kohya and LyCORIS take alpha times the number of output channels, ComfyUI alpha itself.
    """
    return (alpha or 0.0) * (1 if convention == "comfy" else out)


def rotations(blocks: Tensor, bound: float) -> Tensor:
    """Return the orthogonal matrix of each block, by Cayley's transform (I + Q)(I - Q)^-1.

    Args:
        blocks: (..., size, size); Q is a block less its transpose.
        bound: All Q together are shrunk to this Frobenius norm, if theirs is larger; 0 for none.
    """
    skew = blocks - blocks.mT
    norm = float(skew.norm())
    if 0 < bound < norm:
        skew = skew * (bound / norm)
    eye = _identity(skew)
    return torch.linalg.solve(eye - skew, eye + skew, left=False)


def blended(turned: Tensor, strength: float) -> Tensor:
    """Return rotations at a strength, between the identity at 0 and themselves at 1."""
    if strength == 1:
        return turned
    return turned * strength + _identity(turned) * (1 - strength)


def rescaled(weight: Tensor, rescale: Tensor | None, strength: float) -> Tensor:
    """Return new rows, multiplied by their numbers at a strength.

    Args:
        weight: (out, in).
        rescale: One number a row, or None.
        strength: 0 leaves them, 1 multiplies them.
    """
    if rescale is None:
        return weight
    gains = rescale.to(weight).reshape(-1, 1)
    return weight * (1 + strength * (gains - 1))


def channels(blocks: Tensor) -> int:
    """Number of output channels that blocks (..., count, size, size) rotate."""
    return math.prod(blocks.shape[-3:-1])


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
