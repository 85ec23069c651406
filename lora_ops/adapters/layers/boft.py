"""BOFT: the output channels are rotated in stages, each pairing channels further apart (a butterfly).

Liu et al. (2023), arXiv:2311.06243; storage of LyCORIS.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import LayerShapeError
from .layer import Convention, check_fits
from .oft import Rotation, blended, bound, channels, check_blocks, rescaled, rotations


@dataclass(frozen=True, slots=True, eq=False)
class BoftLayer(Rotation):
    """Weight' = rescale * S_m @ ... @ S_2 @ S_1 @ weight, each S of rotations between its channels.

    Stage i (from 0) cuts the channels into runs of 2^i * size / 2 and rotates, in one block, those
    that lie at the same places in two neighbouring runs.

    Attributes:
        blocks: (stages, blocks, size, size), blocks * size = out, size even.
        rescale: (out, 1...), or None.
        alpha: The stored number that bounds the rotation of all stages together; None without one.

    Raises:
        LayerShapeError: The blocks do not make a butterfly, or rescale is not one number a channel.
    """

    def __post_init__(self) -> None:
        check_blocks(self.blocks, self.rescale, 4)
        stages, _, size, _ = self.blocks.shape
        if size % 2 or channels(self.blocks) % (2**stages * size // 2):
            raise LayerShapeError(
                f"blocks are {tuple(self.blocks.shape)}: {channels(self.blocks)} channels do not "
                f"pair up {stages} times in blocks of {size}"
            )

    @property
    def title(self) -> str:
        """BOFT."""
        return "BOFT"

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the weight, of its shape.

        The strength blends each stage with the identity, as LyCORIS does, and rescale with 1.
        ComfyUI does not blend rescale, multiplies the change by the strength once more, and fails
        without an alpha: it then leaves the weight as it is.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        dtype = dtype or torch.float32
        check_fits(self, base)
        weight = base.to(dtype).flatten(1)
        if convention == "comfy" and self.alpha is None:
            return torch.zeros_like(base, dtype=dtype)
        stages = rotations(
            self.blocks.to(base.device, dtype), bound(self.alpha, len(base), convention)
        )
        result = weight
        for index, stage in enumerate(blended(stages, strength)):
            result = _rotated(result, stage, 2**index * (stage.shape[-1] // 2))
        if convention == "comfy":
            whole = rescaled(result, self.rescale, 1.0) - weight
            return whole.mul_(strength).reshape(base.shape)
        return (rescaled(result, self.rescale, strength) - weight).reshape(base.shape)


def _rotated(weight: Tensor, stage: Tensor, run: int) -> Tensor:
    """Rotate rows in blocks of those that lie at the same places in two neighbouring runs.

    Args:
        weight: (out, in).
        stage: (blocks, size, size).
        run: Rows of one run.
    """
    count, size, _ = stage.shape
    paired = weight.unflatten(0, (-1, 2, run)).transpose(1, 2).reshape(count, size, -1)
    turned = (stage @ paired).reshape(-1, run, 2, weight.shape[1])
    return turned.transpose(1, 2).reshape(weight.shape)
