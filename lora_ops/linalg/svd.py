"""Svd, the common result of every decomposition."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .orthonormal import wide


@dataclass(frozen=True, slots=True, eq=False)
class Svd:
    """Leading singular triplets of (..., out, in) matrices; `u * s @ vh` approximates them.

    Attributes:
        u: (..., out, k), float32; columns orthonormal where `s` is not zero.
        s: (..., k), float64, descending, never negative.
        vh: (..., k, in), float32; rows orthonormal where `s` is not zero.
        search: In which numbers the directions were searched, one for each matrix: the dtype of the products;
            None, or nothing at all, where the truncation is exact.
    """

    u: Tensor
    s: Tensor
    vh: Tensor
    search: tuple[torch.dtype | None, ...] = ()

    def __getitem__(self, index: int) -> Svd:
        """The decomposition of one matrix of a stack."""
        search = self.search[index : index + 1]
        return Svd(self.u[index], self.s[index], self.vh[index], search)

    @property
    def mT(self) -> Svd:  # noqa: N802  as PyTorch calls it
        """The decomposition of the transposed matrices."""
        return replace(self, u=self.vh.mT, vh=self.u.mT)

    def truncate(self, rank: int) -> Svd:
        """Keep the `rank` leading triplets."""
        u, s, vh = self.u[..., :rank], self.s[..., :rank], self.vh[..., :rank, :]
        return replace(self, u=u, s=s, vh=vh)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return up (..., out, k) and down (..., k, in), each with the root of the singular values.

        The even split keeps the entries of both factors in the same range, which is what a 16-bit
        format wants.
        """
        root = self.s.sqrt().to(self.u.device, self.u.dtype)
        return self.u * root.unsqueeze(-2), root.unsqueeze(-1) * self.vh


def svd_from_right(image: Tensor, right: Tensor, turn: Tensor | None = None) -> Svd:
    """Return the SVD of a matrix projected on the rows of `right`.

    Args:
        image: (..., k, m), float32 or float64: `right`, orthonormal, times the transposed matrix.
        right: (..., k, n), float32, orthonormal rows.
        turn: (..., k, k), float32, by which rows that are not orthonormal yet become so; None for rows that are.

    The k x k Gram matrix of the image is formed and solved in float64, so that singular values are
    accurate to float32 rounding of the largest one, not to its square root.
    """
    image = wide(image)
    squares, rotation = torch.linalg.eigh(image @ image.mT)
    squares, rotation = squares.flip(-1), rotation.flip(-1).mT
    turned = rotation.to(right.device, right.dtype)
    turned = (turned if turn is None else turned @ turn) @ right
    return svd_from_squares(squares, rotation @ image, turned)


def svd_from_squares(squares: Tensor, image: Tensor, right: Tensor) -> Svd:
    """Return the SVD whose right vectors are known.

    Args:
        squares: (..., k), float64, descending: the squares of the singular values.
        image: (..., k, m), float32 or float64: `right` times the transposed matrix; orthogonal rows.
        right: (..., k, n), float32: the right vectors as rows.
    """
    s = squares.clamp(min=0).sqrt()
    # Directions at rounding level have no usable left vector: give them none rather than noise.
    floor = 1e-7 * s[..., :1]
    inverse = torch.where(s > floor, 1 / s.clamp(min=torch.finfo(s.dtype).tiny), 0.0)
    left = (image * inverse.unsqueeze(-1).to(image.device, image.dtype)).to(right)
    signs = _signs(left)
    return Svd((left * signs).mT, torch.where(s > floor, s, 0.0), right * signs)


def _signs(left: Tensor) -> Tensor:
    """What makes the largest entry of each left vector positive, so that a sign is not an accident."""
    largest = left.abs().argmax(dim=-1, keepdim=True)
    return torch.where(torch.take_along_dim(left, largest, dim=-1) < 0, -1.0, 1.0)
