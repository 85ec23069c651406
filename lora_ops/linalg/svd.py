"""Svd, the common result of every decomposition."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    u: Tensor
    s: Tensor
    vh: Tensor

    def __getitem__(self, index: int) -> Svd:
        """The decomposition of one matrix of a stack."""
        return Svd(self.u[index], self.s[index], self.vh[index])

    def truncate(self, rank: int) -> Svd:
        """Keep the `rank` leading triplets."""
        return Svd(self.u[..., :rank], self.s[..., :rank], self.vh[..., :rank, :])

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return up (..., out, k) and down (..., k, in), each with the root of the singular values.

        The even split keeps the entries of both factors in the same range, which is what a 16-bit
        format wants.
        """
        root = self.s.sqrt().to(self.u.device, self.u.dtype)
        return self.u * root.unsqueeze(-2), root.unsqueeze(-1) * self.vh


def svd_from_right(image: Tensor, right: Tensor) -> Svd:
    """Return the SVD of a matrix projected on the columns of `right`.

    Args:
        image: (..., m, k), float32 or float64: the matrix times `right`.
        right: (..., n, k), float32, orthonormal columns.

    The k x k Gram matrix of the image is formed and solved in float64, so that singular values are
    accurate to float32 rounding of the largest one, not to its square root.
    """
    image = wide(image)
    squares, rotation = torch.linalg.eigh(image.mT @ image)
    squares, rotation = squares.flip(-1), rotation.flip(-1)
    turned = right @ rotation.to(right.device, right.dtype)
    return svd_from_squares(squares, image @ rotation, turned)


def svd_from_squares(squares: Tensor, image: Tensor, right: Tensor) -> Svd:
    """Return the SVD whose right vectors are known.

    Args:
        squares: (..., k), float64, descending: the squares of the singular values.
        image: (..., m, k), float32 or float64: the matrix times `right`; orthogonal columns.
        right: (..., n, k), float32: the right vectors as columns.
    """
    s = squares.clamp(min=0).sqrt()
    # Directions at rounding level have no usable left vector: give them none rather than noise.
    floor = 1e-7 * s[..., :1]
    inverse = torch.where(s > floor, 1 / s.clamp(min=torch.finfo(s.dtype).tiny), 0.0)
    u = image * inverse.unsqueeze(-2).to(image.device, image.dtype)
    s = torch.where(s > floor, s, 0.0)
    return _fix_signs(Svd(u.to(right.device, right.dtype), s, right.mT))


def _fix_signs(svd: Svd) -> Svd:
    """Make the largest entry of each left vector positive, so that a sign is not an accident."""
    largest = svd.u.abs().argmax(dim=-2, keepdim=True)
    signs = torch.where(torch.take_along_dim(svd.u, largest, dim=-2) < 0, -1.0, 1.0)
    return Svd(svd.u * signs, svd.s, svd.vh * signs.mT)
