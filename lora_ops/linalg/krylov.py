"""The default truncation: a randomised block Krylov method that stops when it has measured enough.

Block Lanczos on `A.mT @ A`, never formed, with full reorthogonalisation on the short side of A only;
the long side is touched by two thin products a step and one at the end. Compared with subspace
iteration at equal products (`svd_lowrank` and its kin) a Krylov space keeps all earlier blocks, and
its error falls with the square of the exponent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ._shapes import Float
from .gram import gram_svd
from .operators import Operator
from .orthonormal import orthonormal, wide
from .precision import search_dtypes
from .search import search_svd
from .steps import MOST, block_width, converged, start
from .svd import Svd, svd_from_squares


def krylov_svd(
    matrix: Float[Tensor, "*batch out in"] | Operator,
    rank: int,
    total: Tensor,
    seed: int = 0,
    *,
    tolerance: float = 9.2e-4,
) -> Svd:
    """Return `rank` leading singular triplets whose truncation is close to the best possible one.

    Stops when all further steps together are expected to lower the error of the truncation by less
    than `tolerance` of itself, judged from the gains of the last three. A spectrum so flat that a
    basis of nearly full size would be needed is decomposed exactly.

    Args:
        matrix: (..., out, in), float32; or a sum that is only multiplied with, of one matrix.
        rank: 1 to min(out, in).
        total: (...), float64: the squared Frobenius norm of each matrix.
        seed: Seed of the random start, the same for all matrices of a batch, so that a result
            does not depend on its neighbours.
        tolerance: Excess error accepted, as a share of the best error: where gains shrink slowest, on
            nearly flat spectra by 6 % and on straight lines by 30 %, the estimate is low; elsewhere it is high.

    Source: Musco & Musco (2015), Randomized block Krylov methods; one-sided reorthogonalisation,
        Simon & Zha (2000).
    """
    if isinstance(matrix, Operator) or matrix.ndim > 2:
        return _stacked(matrix, rank, total, seed, tolerance)
    return _stacked(matrix[None], rank, total[None], seed, tolerance)[0]


def _stacked(
    matrix: Tensor | Operator, rank: int, total: Tensor, seed: int, tolerance: float
) -> Svd:
    if matrix.shape[-2] < matrix.shape[-1]:
        return _stacked(matrix.mT, rank, total, seed, tolerance).mT
    count, _, side = matrix.shape
    block = min(block_width(rank), side)
    found: dict[int, Svd] = {}
    if isinstance(matrix, Tensor) and (dtypes := search_dtypes(matrix)):
        # One by one, which is quicker; and how a stack is multiplied is seen in the last digit of bfloat16.
        for i in range(count):
            svd = search_svd(matrix[i], rank, total[i], seed, tolerance, dtypes)
            if svd is not None:
                found[i] = svd
    if len(found) == count:
        return _joined(found)
    newest = start(side, block, seed).to(matrix.new_empty(0).device).expand(count, block, side)
    spaces = _Spaces(matrix, newest)
    captured: list[Tensor] = []
    while len(found) < count:
        if spaces.size >= rank:
            # Vectors cost twice what values do: they are computed once convergence is likely.
            if len(captured) < 4:
                squares, vectors = torch.linalg.eigvalsh(spaces.ritz), None
            else:
                squares, vectors = torch.linalg.eigh(spaces.ritz)
            captured.append(squares[..., -rank:].sum(-1))
            for index in converged(captured, total, tolerance):
                if index not in found:
                    if vectors is None:
                        squares, vectors = torch.linalg.eigh(spaces.ritz)
                    found[index] = spaces.triplets(index, squares[index], vectors[index], rank)
        if spaces.size + block > MOST * side:
            found |= {i: gram_svd(matrix[i], rank) for i in range(count) if i not in found}
        elif len(found) < count:
            spaces.extend()
    return _joined(found)


def _joined(found: Mapping[int, Svd]) -> Svd:
    """The decompositions of a stack, by index, as that of the stack."""
    parts = [found[index] for index in range(len(found))]
    search = tuple(part.search[0] if part.search else None for part in parts)
    if len(parts) == 1:  # nothing is copied
        return Svd(parts[0].u[None], parts[0].s[None], parts[0].vh[None], search)
    return Svd(
        torch.stack([part.u for part in parts]),
        torch.stack([part.s for part in parts]),
        torch.stack([part.vh for part in parts]),
        search,
    )


class _Spaces:
    """The Krylov basis (rows), its image under the matrix (rows, float64), and the latter's Gram matrix."""

    def __init__(self, matrix: Tensor | Operator, start: Tensor) -> None:
        self.matrix = matrix
        self.size = 0
        count, out, side = matrix.shape
        room = min(8 * start.shape[-2], side)
        self._basis = matrix.new_empty((count, room, side))
        # Squares of singular values 2^12 apart do not fit in float32: the image is kept wider.
        self._image = wide(matrix.new_empty(0)).new_empty((count, room, out))
        self.ritz = self._image.new_empty((count, 0, 0))
        self._append(start)

    def extend(self) -> None:
        """Add one block: the newest one, sent through the matrix and back."""
        back = self._newest_image @ self.matrix
        self._append(orthonormal(back, self._basis[:, : self.size]))

    def triplets(self, index: int, squares: Tensor, vectors: Tensor, rank: int) -> Svd:
        """The leading singular triplets of one matrix, from the eigenvectors of its Gram matrix."""
        basis, image = self._basis[index, : self.size], self._image[index, : self.size]
        leading = vectors[:, -rank:].flip(-1).mT.to(basis.device, basis.dtype)
        image = image.to(basis.device, basis.dtype)
        svd = svd_from_squares(squares[-rank:].flip(-1), leading @ image, leading @ basis)
        return replace(svd, search=(basis.dtype,))

    def _append(self, newest: Tensor) -> None:
        start, end = self.size, self.size + newest.shape[-2]
        if end > self._basis.shape[1]:
            self._basis = torch.cat([self._basis, torch.empty_like(self._basis)], dim=1)
            self._image = torch.cat([self._image, torch.empty_like(self._image)], dim=1)
        self._newest_image = newest @ self.matrix.mT
        self._basis[:, start:end] = newest
        self._image[:, start:end] = self._newest_image
        self.ritz = _bordered(self.ritz, self._image[:, start:end] @ self._image[:, :end].mT)
        self.size = end


def _bordered(ritz: Tensor, coefficients: Tensor) -> Tensor:
    """Extend a symmetric matrix by its newest block of rows."""
    block, size = coefficients.shape[-2:]
    extended = ritz.new_empty((*ritz.shape[:-2], size, size))
    extended[..., : size - block, : size - block] = ritz
    extended[..., size - block :, :] = coefficients
    extended[..., :, size - block :] = coefficients.mT
    return extended
