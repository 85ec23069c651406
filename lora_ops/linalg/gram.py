"""The exact truncation, through the eigenvectors of the smaller Gram matrix.

A Gram matrix and `eigh` cost a third to a fiftieth of a full SVD: the long side of the matrix enters
only through one product, and no vector that is not wanted is ever made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._shapes import Float
from .orthonormal import orthonormal, wide
from .svd import Svd, svd_from_right


def gram_svd(matrix: Float[Tensor, "*batch out in"], rank: int) -> Svd:
    """Return the `rank` leading singular triplets, exactly (to float32 rounding).

    The eigenvectors of a float32 Gram matrix resolve a direction only down to the root of float32
    precision below the largest one; the final projection, with a few spare directions, heals that.

    Args:
        matrix: (..., out, in), float32.
        rank: 1 to min(out, in).

    Source: Eckart & Young (1936); the projection is one step of orthogonal iteration.
    """
    out, side = matrix.shape[-2:]
    if out < side:
        flipped = gram_svd(matrix.mT, rank)
        return Svd(flipped.vh.mT, flipped.s, flipped.u.mT)
    _, vectors = torch.linalg.eigh(_gram(matrix))
    spare = min(side, rank + 8)
    right = vectors[..., -spare:].to(matrix.device, matrix.dtype)
    right = orthonormal(matrix.mT @ (matrix @ right))
    return svd_from_right(matrix @ right, right).truncate(rank)


def spectrum(matrix: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch k"]:
    """Return all min(out, in) singular values, float64, descending.

    Those below 3e-4 of the largest are uncertain in size, as float32 squares are: no rank rule that
    asks for them depends on more.
    """
    tall = matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT
    squares = torch.linalg.eigvalsh(_gram(tall))
    return squares.double().clamp(min=0).sqrt().flip(-1)


def _gram(tall: Tensor) -> Tensor:
    """`tall.mT @ tall`; in float64 where that costs nothing to speak of."""
    if tall.shape[-1] <= 256:
        tall = wide(tall)
    gram = tall.mT @ tall
    return gram.cpu() if gram.device.type == "mps" else gram
