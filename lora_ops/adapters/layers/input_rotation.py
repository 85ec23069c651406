"""OFT as PEFT and OneTrainer have it: the input channels are rotated, block by block.

Qiu et al. (2025), arXiv:2506.19847; storage and series of PEFT 0.21 (`oft_R`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...elements import Element, element_in
from ...errors import LayerShapeError, UnsupportedLayerError
from .families import ChangeOfBase
from .layer import Convention, by_role, check_fits


@dataclass(frozen=True, slots=True, eq=False)
class InputRotationLayer(ChangeOfBase):
    """Weight' = weight @ blockdiag(R_1, R_2, ...)^T, each R from the skew matrix Q of one block.

    Attributes:
        numbers: (blocks, size * (size - 1) / 2): each Q above its diagonal, row by row; a single
            block may stand for all.
        scaled: OneTrainer's mark that the numbers are divided by 2 sqrt(size - 1), or None.
        terms: How many terms PEFT keeps of the series for Cayley's transform: 5 keeps I + 2Q + 2Q^2 + 2Q^3 +
            Q^4; 0: the transform itself, (I - Q)(I + Q)^-1.

    Raises:
        LayerShapeError: The numbers are not those above a diagonal.
    """

    numbers: Tensor
    scaled: Tensor | None = None
    terms: int = 5

    def __post_init__(self) -> None:
        shape, size = tuple(self.numbers.shape), self.size
        if len(shape) != 2 or 0 in shape or size * (size - 1) // 2 != shape[1]:
            raise LayerShapeError(
                f"oft_R is {shape}: it has a row of size * (size - 1) / 2 numbers for each block"
            )

    @property
    def title(self) -> str:
        """OFT of the inputs."""
        return "OFT of the inputs"

    @property
    def size(self) -> int:
        """Channels of one block."""
        return (1 + math.isqrt(1 + 8 * self.numbers.shape[-1])) // 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight: -1 (any) for the output, and for the input of a shared block."""
        blocks = len(self.numbers)
        return (-1, blocks * self.size if blocks > 1 else -1)

    @property
    def rank(self) -> int:
        """Number of channels in the blocks: a rotation may change all of them."""
        return len(self.numbers) * self.size

    @property
    def element(self) -> Element:
        """What its numbers are, as stored."""
        return element_in(self.numbers)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role, as a file holds them."""
        return by_role(numbers=self.numbers, scaled=self.scaled)

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the weight, of its shape; proportional to the strength.

        ComfyUI does not read it.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
            UnsupportedLayerError: A convolution, which PEFT and OneTrainer turn opposite ways.
        """
        dtype = dtype or torch.float32
        check_fits(self, base)
        if base.ndim != 2 or base.shape[1] % self.size:
            raise UnsupportedLayerError(
                f"OFT of the inputs in blocks of {self.size} is for linear layers with whole blocks, "
                f"this weight is {tuple(base.shape)}; merge it with the program that made it"
            )
        weight = base.to(dtype)
        turned = self._rotations(dtype).to(base.device)
        blocks = weight.unflatten(1, (-1, self.size))
        result = torch.einsum("obi,bji->obj", blocks, turned.expand(blocks.shape[1], -1, -1))
        return (result.flatten(1) - weight).mul_(strength)

    def _rotations(self, dtype: torch.dtype) -> Tensor:
        """The orthogonal matrices (blocks, size, size) that the numbers stand for."""
        size = self.size
        rows, columns = torch.triu_indices(size, size, 1)
        skew = torch.zeros(len(self.numbers), size, size, dtype=dtype)
        skew[:, rows, columns] = self.numbers.to(skew)
        if self.scaled is not None:
            skew = skew / (2 * math.sqrt(size - 1))
        skew = skew - skew.mT
        eye = torch.eye(size, dtype=dtype).expand_as(skew)
        if not self.terms:
            return torch.linalg.solve(eye + skew, eye - skew, left=False)
        last = max(self.terms - 1, 3) if self.terms > 2 else self.terms - 1
        result, power = eye, eye
        for index in range(1, last + 1):
            power = power @ skew
            result = result + power * (1 if index == last and self.terms > 2 else 2)
        return result
