"""The exact truncation, through the eigenvectors of the smaller Gram matrix.

A Gram matrix and `eigh` cost a third to a fiftieth of a full SVD: the long side of the matrix enters
only through one product, and no vector that is not wanted is ever made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._shapes import Float
from .leading import leading_vectors
from .orthonormal import orthonormal, wide
from .svd import Svd, svd_from_right

# Up to this side float64 costs nothing to speak of.
SMALL = 256
# Below this share of the largest singular value, float32 squares say nothing of a direction.
RESOLVED = 1e-3


def gram_svd(matrix: Float[Tensor, "*batch out in"], rank: int) -> Svd:
    """Return the `rank` leading singular triplets, exactly (to float32 rounding).

    The eigenvectors come from a float32 Gram matrix, and from a float64 one where that cannot
    resolve the last of them; a final projection, with a few spare directions, polishes them.

    Args:
        matrix: (..., out, in), float32.
        rank: 1 to min(out, in).

    Source: Eckart & Young (1936); the projection is one step of orthogonal iteration.
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        return gram_svd(matrix.mT, rank).mT
    if matrix.shape[-1] <= SMALL:
        return _polished(matrix, wide(matrix), rank)
    svd = _polished(matrix, matrix, rank)
    if bool((svd.s[..., -1] < RESOLVED * svd.s[..., 0]).any()):
        svd = _polished(matrix, wide(matrix), rank)
    return svd


def spectrum(matrix: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch k"]:
    """Return all min(out, in) singular values, float64, descending.

    Those below 3e-4 of the largest are uncertain in size, as float32 squares are: no rank rule that
    asks for them depends on more.
    """
    tall = matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT
    squares = torch.linalg.eigvalsh(_gram(wide(tall) if tall.shape[-1] <= SMALL else tall))
    return squares.double().clamp(min=0).sqrt().flip(-1)


def _polished(tall: Tensor, same: Tensor, rank: int) -> Svd:
    """The SVD of `tall`, from the Gram matrix of `same`, which is `tall`, maybe in float64."""
    # The leading vectors first, so that later ones, which may be rounding, cannot disturb them.
    right = _leading(_gram(same), rank, min(tall.shape[-1], rank + 8)).to(tall.device, tall.dtype)
    right = orthonormal((right @ tall.mT) @ tall)
    return svd_from_right(right @ tall.mT, right).truncate(rank)


def _leading(gram: Tensor, rank: int, spare: int) -> Tensor:
    """The leading eigenvectors as rows, (..., spare, n): alone where that is cheaper than all of them."""
    if gram.ndim > 2 and gram.device.type == "cpu":
        return torch.stack([_leading(one, rank, spare) for one in gram])
    found = leading_vectors(gram, rank, spare) if gram.ndim == 2 else None
    return torch.linalg.eigh(gram)[1][..., -spare:].flip(-1).mT if found is None else found


def _gram(tall: Tensor) -> Tensor:
    """`tall.mT @ tall`, on the CPU where the device has no eigenproblems."""
    side = tall.shape[-1]
    gram = tall.new_empty((*tall.shape[:-2], side, side))
    # What is above the diagonal is known from below it: with four parts, three eighths of the work.
    step = max(SMALL, -(-side // 4))
    for begin in range(0, side, step):
        end = min(side, begin + step)
        rows = tall[..., begin:end].mT @ tall[..., :end]
        gram[..., begin:end, :end] = rows
        gram[..., :begin, begin:end] = rows[..., :begin].mT
    return gram.cpu() if gram.device.type == "mps" else gram
