"""PiSSA and OLoRA of PEFT: factors that began as a part of the weight, which is taken out of it.

Meng et al. (2024), arXiv:2404.02948; Büyükakyüz (2024), arXiv:2406.01775. At each loading PEFT makes
the initial factors again from the weight and subtracts their product, before it reads the trained ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...elements import Element
from ...errors import LayerShapeError
from .families import ChangeOfBase
from .layer import Convention, check_fits
from .lora import LoraLayer

Initial = Literal["pissa", "olora"]
_TITLES: dict[Initial, str] = {"pissa": "PiSSA", "olora": "OLoRA"}


@dataclass(frozen=True, slots=True, eq=False)
class PissaLayer(ChangeOfBase):
    """Change = that of the trained factors less that of the initial ones, made from the weight.

    Attributes:
        inner: The trained factors, of a matrix.
        initial: The weight's largest directions (pissa), or the first of its QR decomposition times
            the scale (olora); as many as the inner layer's rank.

    Raises:
        LayerShapeError: The weight is no matrix: PEFT has neither initialisation for others.
    """

    inner: LoraLayer
    initial: Initial

    def __post_init__(self) -> None:
        if len(self.inner.shape) != 2:
            raise LayerShapeError(
                f"{self.title} is of linear layers; this one is {self.inner.shape}"
            )

    is_made_whole: ClassVar[bool] = False
    is_peft_only: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """PiSSA or OLoRA."""
        return _TITLES[self.initial]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes."""
        return self.inner.shape

    @property
    def rank(self) -> int:
        """Rank of both pairs of factors together, and no more than a side of the weight."""
        return min(2 * self.inner.rank, *self.shape)

    @property
    def scale(self) -> float:
        """Scale of the trained factors."""
        return self.inner.scale

    @property
    def element(self) -> Element:
        """What the numbers of the trained factors are."""
        return self.inner.element

    def tensors(self) -> dict[str, Tensor]:
        """The trained factors by role, as a file holds them."""
        return self.inner.tensors()

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the weight, of its shape; proportional to the strength.

        PEFT's own strength is of the trained factors alone, so that at 0 the weight lacks the
        initial ones.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        dtype = dtype or torch.float32
        up, down = self._factors(base)
        return (up * strength @ down).to(dtype).reshape(base.shape)

    def factors_of(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """Return up (out, 2 r) and down (2 r, in), float32, of the change of a weight; scale in up.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        up, down = self._factors(base)
        # Side by side, the trained and the initial factors are large and nearly cancel: what rounds
        # them is to be small beside their difference.
        left, core_left = torch.linalg.qr(up)
        right, core_right = torch.linalg.qr(down.mT)
        u, s, vh = torch.linalg.svd(core_left @ core_right.mT, full_matrices=False)
        root = s.sqrt()
        return (left @ (u * root)).float(), ((root.unsqueeze(1) * vh) @ right.mT).float()

    def _factors(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """Both pairs, float64: the change is the difference of two large products."""
        check_fits(self, base)
        weight, rank = base.double().reshape(self.shape), self.inner.rank
        if self.initial == "pissa":
            first, second = _leading(weight, rank)
        else:
            q, r = torch.linalg.qr(weight)
            first, second = q[:, :rank] * self.scale, r[:rank]
        up, down = (one.to(weight) for one in (self.inner.up, self.inner.down))
        return torch.cat([up * self.scale, -first], 1), torch.cat([down, second])


def _leading(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two factors of the part of a weight that its largest directions make.

    They are the eigenvectors of the smaller Gram matrix: in float64 its squares cost no digit that
    PEFT's float32 decomposition has.
    """
    if weight.shape[0] < weight.shape[1]:
        second, first = _leading(weight.mT, rank)
        return first.mT, second.mT
    vectors = torch.linalg.eigh(weight.mT @ weight)[1][:, -rank:]
    return weight @ vectors, vectors.mT
