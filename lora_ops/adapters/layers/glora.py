"""GLoRA: a low-rank change beside a low-rank change of the weight's own input.

Chavan et al. (2023), arXiv:2306.07967, in the part that LyCORIS trains: A and B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...elements import Element, element_in
from ...errors import LayerShapeError
from .families import ChangeOfBase, Scaled
from .layer import Convention, by_role, check_fits
from .matrix import kron


@dataclass(frozen=True, slots=True, eq=False)
class GloraLayer(Scaled, ChangeOfBase):
    """Change = scale * (weight @ a + b), on the input channels, where a and b are of low rank.

    Two layouts are in circulation, told apart by shapes: today's, with a = a1 @ a2 and b = b1 @ b2,
    and that of LyCORIS before 2.0, with a = a2 @ a1 and b = b2 @ b1.

    Attributes:
        a1, a2: (in, rank) and (rank, in); in the old layout the other way round.
        b1, b2: (out, rank) and (rank, in, *kernel); in the old layout the other way round.
        alpha: The stored number; None where the file has none.

    Raises:
        LayerShapeError: The factors fit neither layout.
    """

    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor
    alpha: float | None = None

    def __post_init__(self) -> None:
        shapes = {role: tuple(one.shape) for role, one in self._stored.items()}
        told = ", ".join(f"{role} is {shape}" for role, shape in shapes.items())
        if any(len(shape) < 2 or 0 in shape for shape in shapes.values()):
            raise LayerShapeError(f"{told}: a factor has two axes or more, none empty")
        if not _is_new(shapes) and not _is_old(shapes):
            raise LayerShapeError(f"{told}: they fit neither layout of GLoRA")

    is_proportional: ClassVar[bool] = True
    is_made_whole: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """GLoRA."""
        return "GLoRA"

    @property
    def is_old(self) -> bool:
        """Whether its factors are in the old layout.

        The shapes for a square weight fit both layouts; there the longer side of a2 tells.
        """
        shapes = {role: tuple(one.shape) for role, one in self._stored.items()}
        return _is_old(shapes) and (not _is_new(shapes) or shapes["a2"][0] >= shapes["a2"][1])

    @property
    def factor_rank(self) -> int:
        """Inner size of the factors: what alpha is divided by."""
        return self._ordered[1].shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes, (out, in, *kernel)."""
        _, _, up, down = self._ordered
        return (up.shape[0], *down.shape[1:])

    @property
    def rank(self) -> int:
        """Ranks of both parts together, and no more than a side of the weight."""
        taps = math.prod(self.shape[2:])
        return min(self.factor_rank * (1 + taps), self.shape[0], self.shape[1] * taps)

    @property
    def element(self) -> Element:
        """What the numbers of the factors are, as stored."""
        return element_in(self.b2)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role, as a file holds them; alpha as a float32 scalar."""
        return by_role(self.alpha, **self._stored)

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the weight, of its shape; proportional to the strength.

        All programs agree.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        dtype = dtype or torch.float32
        check_fits(self, base)
        first, second, up, down = (one.to(base.device, dtype).flatten(1) for one in self._ordered)
        channels = base.to(dtype).reshape(len(base), first.shape[0], -1)
        own = torch.einsum("oik,ir->ork", channels, first)
        own = torch.einsum("ork,rj->ojk", own, second)
        both = own.reshape(len(base), -1).add_(up @ down)
        return both.mul_(self.scale * strength).reshape(base.shape)

    def factors_of(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """Return up (out, r) and down (r, in * kernel), float32, of the change of a weight.

        Exact: r is that of b and, for each tap of the kernel, that of a. Scale is in up.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        check_fits(self, base)
        first, second, up, down = (
            one.to(base.device, torch.float32).flatten(1) for one in self._ordered
        )
        channels = base.float().reshape(len(base), first.shape[0], -1)
        own = torch.einsum("oik,ir->ork", channels, first).flatten(1)
        taps = torch.eye(channels.shape[2], device=base.device)
        return torch.cat([own, up], 1) * self.scale, torch.cat([kron(second, taps), down])

    @property
    def _stored(self) -> dict[str, Tensor]:
        return {"a1": self.a1, "a2": self.a2, "b1": self.b1, "b2": self.b2}

    @property
    def _ordered(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The factors of a, (in, r) and (r, in), and those of b, (out, r) and (r, in * kernel)."""
        if self.is_old:
            return self.a2, self.a1, self.b2, self.b1
        return self.a1, self.a2, self.b1, self.b2


def _is_new(shapes: dict[str, tuple[int, ...]]) -> bool:
    return _fit(shapes["a1"], shapes["a2"], shapes["b1"], shapes["b2"])


def _is_old(shapes: dict[str, tuple[int, ...]]) -> bool:
    return _fit(shapes["a2"], shapes["a1"], shapes["b2"], shapes["b1"])


def _fit(
    first: tuple[int, ...], second: tuple[int, ...], up: tuple[int, ...], down: tuple[int, ...]
) -> bool:
    """Whether (in, r), (r, in), (out, r) and (r, in, *kernel) have their ranks and inputs in common.

    The old layout of a convolution has its kernel in the input of a, too.
    """
    into = {first[0], math.prod(second[1:])}
    ranks = {math.prod(first[1:]), second[0], math.prod(up[1:]), down[0]}
    return len(ranks) == 1 and into in ({down[1]}, {math.prod(down[1:])})
