"""BOFT as PEFT has it: the input side is rotated in stages, and each output channel multiplied.

Liu et al. (2023), arXiv:2311.06243; storage of PEFT 0.21 (`boft_R`, `boft_s`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...elements import Element, element_in
from ...errors import LayerShapeError
from .families import ChangeOfBase
from .layer import Convention, by_role, check_fits
from .oft import channels, check_blocks, rescaled, rotations


@dataclass(frozen=True, slots=True, eq=False)
class InputButterflyLayer(ChangeOfBase):
    """Weight' = row_gains * weight @ (S_m @ ... @ S_2 @ S_1)^T, each S of rotations on the input side.

    Stage i (from 0) cuts the inputs into runs of size / 2; one block rotates two of these that are 2^i
    runs apart. Of a convolution the inputs are (in * kernel), as its weight has them.

    Attributes:
        stages: (stages, blocks, size, size), blocks * size = in * kernel; size even, if there is
            more than one stage.
        row_gains: (out, 1) or (1, out).

    Raises:
        LayerShapeError: The blocks do not make a butterfly, or row_gains is not one row of numbers.
    """

    stages: Tensor
    row_gains: Tensor

    def __post_init__(self) -> None:
        check_blocks(self.stages, None, 4)
        count, _, size, _ = self.stages.shape
        if count > 1 and (size % 2 or self.inputs % (2 ** (count - 1) * size)):
            raise LayerShapeError(
                f"boft_R is {tuple(self.stages.shape)}: {self.inputs} channels do not pair up "
                f"{count} times in blocks of {size}"
            )
        shape = tuple(self.row_gains.shape)
        if sum(size != 1 for size in shape) > 1 or 0 in shape:
            raise LayerShapeError(f"boft_s is {shape}: it is one row of numbers")

    @property
    def title(self) -> str:
        """BOFT of the inputs."""
        return "BOFT of the inputs"

    @property
    def inputs(self) -> int:
        """Size of the input side, in * kernel."""
        return channels(self.stages)

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in * kernel)."""
        return (self.row_gains.numel(), self.inputs)

    @property
    def rank(self) -> int:
        """Size of the input side: a rotation may change all of it."""
        return self.inputs

    @property
    def element(self) -> Element:
        """What the numbers of the blocks are, as stored."""
        return element_in(self.stages)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role, as a file holds them."""
        return by_role(stages=self.stages, row_gains=self.row_gains)

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
        """
        dtype = dtype or torch.float32
        check_fits(self, base)
        weight = base.to(dtype).flatten(1)
        # PEFT's Q is half of what is antisymmetric in a block, and its rotation the inverse of ours.
        turned = rotations(self.stages.to(base.device, dtype).mT / 2, 0.0)
        result = weight.mT
        for index, stage in enumerate(turned):
            result = _rotated(result, stage, 2**index)
        return (
            (rescaled(result.mT, self.row_gains, 1.0) - weight).mul_(strength).reshape(base.shape)
        )


def _rotated(rows: Tensor, stage: Tensor, apart: int) -> Tensor:
    """Rotate rows in blocks of two runs, a number of runs apart.

    Args:
        rows: (in, out).
        stage: (blocks, size, size).
        apart: How many runs further the second of two lies; 1 for neighbours.
    """
    count, size, _ = stage.shape
    if apart == 1:
        return (stage @ rows.reshape(count, size, -1)).reshape(rows.shape)
    run = size // 2
    paired = rows.unflatten(0, (-1, 2, apart, run)).transpose(1, 2).reshape(count, size, -1)
    turned = (stage @ paired).reshape(-1, apart, 2, run, rows.shape[1])
    return turned.transpose(1, 2).reshape(rows.shape)
