"""VeRA of PEFT: two random matrices that all layers share, and two vectors that each layer has.

Kopiczko et al. (2023), arXiv:2310.11454. The matrices are as large as the largest layer needs; which of their
columns are a layer's depends on its weight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...elements import Element, element_in
from ...errors import LayerShapeError
from .families import ChangeOfBase
from .layer import Convention, Layer, by_role, check_fits, multiplied


@dataclass(frozen=True, slots=True, eq=False)
class VeraLayer(ChangeOfBase):
    """Change = diag(out_gains) @ up[:out] @ diag(inner_gains) @ down[:, :in].

    Attributes:
        out_gains: (out,).
        inner_gains: (rank,).
        up: (out or more, rank), which all layers of the file share.
        down: (rank, in or more), the same.

    Raises:
        LayerShapeError: The vectors do not fit the matrices.
    """

    out_gains: Tensor
    inner_gains: Tensor
    up: Tensor
    down: Tensor

    is_proportional: ClassVar[bool] = True
    is_made_whole: ClassVar[bool] = False
    is_peft_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        up, down, rank = tuple(self.up.shape), tuple(self.down.shape), self.inner_gains.shape[0]
        if up[1] != rank or down[0] != rank or up[0] < self.out_gains.shape[0]:
            raise LayerShapeError(
                f"{self.out_gains.shape[0]} outputs of rank {rank} do not fit the shared matrices, {up} and {down}"
            )

    @property
    def title(self) -> str:
        """VeRA."""
        return "VeRA"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, (out, -1): how many inputs it has is not in the file."""
        return self.out_gains.shape[0], -1

    @property
    def rank(self) -> int:
        """Inner size of the matrices."""
        return self.inner_gains.shape[0]

    @property
    def element(self) -> Element:
        """What the numbers of the vectors are, as stored."""
        return element_in(self.out_gains)

    def tensors(self) -> dict[str, Tensor]:
        """The vectors by role; the matrices belong to no single layer."""
        return by_role(out_gains=self.out_gains, inner_gains=self.inner_gains)

    def times(self, target: str, strength: float, *, has_alpha: bool) -> Layer:
        """Return the layer with a strength in its vector of the outputs.

        Raises:
            NonFiniteError: A number is then out of the range of its dtype.
        """
        return replace(self, out_gains=multiplied(target, self.out_gains, strength))

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the weight, of its shape.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        dtype = dtype or torch.float32
        up, down = self._factors(base, dtype)
        return (up * strength @ down).reshape(base.shape).to(base.device)

    def factors_of(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """Return up (out, rank) and down (rank, in), float32, of the change of a weight.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        return self._factors(base, torch.float32)

    def _factors(self, base: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        check_fits(self, base)
        out, width = base.shape[0], base[0].numel()
        if width > self.down.shape[1]:
            raise LayerShapeError(
                f"the shared matrix has {self.down.shape[1]} columns, and the weight {width}: it is of another model"
            )
        up = self.out_gains.to(dtype).unsqueeze(1) * self.up[:out].to(dtype)
        return up, self.inner_gains.to(dtype).unsqueeze(1) * self.down[:, :width].to(dtype)
