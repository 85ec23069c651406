"""The leading directions of large matrices on processors, searched in as few bits as those have units for.

A subspace need not be known to many digits: what a direction is off by costs energy with its square. So
the Krylov space is grown with products in int8 or bfloat16, and what it yields goes through the matrix itself once
more, in float32: half a step more, exact singular values of what was found, and an error that is known. Where there
are no such units it is grown in float32, and is its own end.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .lowered import Lowered, lowered, through
from .steps import MOST, block_width, converged, start
from .svd import Svd, svd_from_right

# What fewer bits lose is up to 1e-5 of the squared norm: nothing to what is missed if that is more than this
# share of it, a relative error of 14 %.
_RESOLVED = 0.02
# What the rows of a basis may have in common, and what they have after a projection.
_DRIFT, _ROUNDING = 1e-3, 1e-6
# Rows whose lengths, once they are made orthogonal, differ by more are not quite orthogonal after one turn: the
# Gram matrix of a block has their squares.
_UNEQUAL = 0.1
# Squares of what float32 holds outside this range are not safe in float32.
_SMALL, _LARGE = 1e-24, 1e24


def search_svd(
    matrix: Tensor,
    rank: int,
    total: Tensor,
    seed: int,
    tolerance: float,
    dtypes: tuple[torch.dtype, ...],
) -> Svd | None:
    """Return the leading singular triplets of a matrix; None where fewer bits do not resolve them.

    Args:
        matrix: (out, in), float32, out at least in.
        rank: 1 to in.
        total: Float64: its squared Frobenius norm.
        seed: Of the random start.
        tolerance: See `krylov_svd`.
        dtypes: Of the products: the first that is fine enough, see `lowered`.
    """
    norm, side = float(total), matrix.shape[1]
    low = lowered(matrix, norm, dtypes) if _SMALL < norm < _LARGE else None
    if low is None:
        return None
    is_coarse = low.dtype != torch.float32
    block = min(_width(rank) if is_coarse else block_width(rank), side)
    space = _Space(low, start(side, block, seed), len(matrix))
    captured: list[Tensor] = []
    while space.is_sound:
        if space.size >= rank:
            # Vectors cost twice what values do: they are computed once convergence is likely.
            if len(captured) < 3:
                squares, vectors = torch.linalg.eigvalsh(space.ritz), None
            else:
                squares, vectors = torch.linalg.eigh(space.ritz)
            held = squares[-rank:].double().sum()
            if float(held) > (1 - _RESOLVED) * norm:
                return None
            captured.append(held[None])
            if vectors is not None and converged(
                captured, total[None], tolerance, half_a_step=is_coarse
            ):
                svd = space.triplets(matrix, squares[-rank:].flip(-1), vectors[:, -rank:].flip(-1))
                # More than the matrix itself confirms was promised by a basis that is none.
                short = held - low.blur * squares[-rank:].norm() - svd.s.square().sum()
                return svd if bool(short <= tolerance * (total - held)) else None
        if space.size + block > MOST * side:
            return None
        space.extend()
    return None


def _width(rank: int) -> int:
    """Rows of a block, in multiples of 8: of five blocks two are more than what is wanted."""
    return max(16, -(-rank * 5 // 64) * 8)


class _Space:
    """A Krylov basis on the short side (rows), its image on the long one, and the Gram matrix of that.

    Attributes:
        size: Rows.
        is_sound: Whether no block was linearly dependent.
    """

    def __init__(self, low: Lowered, first: Tensor, long: int) -> None:
        self._low, self._long = low, long
        self._block = len(first)
        self.size = 0
        self.is_sound = True
        self._drift = _ROUNDING
        self._basis = first.new_empty((0, first.shape[1]))
        dtype = torch.float32 if low.dtype == torch.float32 else torch.bfloat16
        self._image = first.new_empty((0, long), dtype=dtype)
        self._ritz = first.new_empty((0, 0))
        self._append(first)

    @property
    def ritz(self) -> Tensor:
        """The Gram matrix of the image: its lower triangle."""
        return self._ritz[: self.size, : self.size]

    def extend(self) -> None:
        """Add one block: the newest one, sent through the matrix and back."""
        begin, end = self.size - self._block, self.size
        basis = self._basis[:end]
        back = self._low.times(self._newest)
        coefficients = back @ basis.mT
        self._ritz[begin:end, :end] = coefficients
        left = torch.addmm(back, coefficients, basis, alpha=-1)
        gram = left @ left.mT
        # What the basis lacks in orthogonality grows as little is left of a block.
        own, lost = gram.diagonal(), coefficients.square().sum(-1)
        share = float((own / (own + lost).clamp(min=torch.finfo(own.dtype).tiny)).amin())
        self._drift = self._drift / max(math.sqrt(share), _ROUNDING)
        if self._drift > _DRIFT:
            left = torch.addmm(left, left @ basis.mT, basis, alpha=-1)
            gram = left @ left.mT
            self._drift = _ROUNDING
        lower, inverse, self.is_sound = _cholesky(gram)
        newest = inverse @ left
        own = lower.diagonal()
        if float(own.amin() / own.amax()) < _UNEQUAL:
            again, inverse, _ = _cholesky(newest @ newest.mT)
            newest, lower = inverse @ newest, lower @ again
        self._append(newest)
        self._ritz[end : self.size, begin:end] = lower.mT

    def triplets(self, matrix: Tensor, squares: Tensor, vectors: Tensor) -> Svd:
        """Return the leading singular triplets of the matrix; what was found in fewer bits goes through it once more.

        Args:
            matrix: (out, in), float32.
            squares: (k,), the leading eigenvalues of the Gram matrix, descending.
            vectors: (size, k), its eigenvectors.
        """
        image = self._image[: self.size]
        leading = (vectors / squares.sqrt()).mT
        rows = (leading.to(image.dtype) @ image).float()
        if self._low.dtype == torch.float32:
            return self._projected(rows, leading @ self._basis[: self.size])
        return self._projected(through(rows, matrix), rows).mT

    def _projected(self, image: Tensor, rows: Tensor) -> Svd:
        """The SVD of a matrix projected on rows that need not be orthonormal, from their image."""
        _, inverse, _ = _cholesky(rows @ rows.mT)
        svd = svd_from_right(inverse @ image, rows, inverse)
        return replace(svd, search=(self._low.dtype,))

    def _append(self, newest: Tensor) -> None:
        begin, end = self.size, self.size + self._block
        if end > len(self._basis):
            self._grow()
        self._basis[begin:end] = newest
        self._newest = self._image[begin:end] = self._low.image(newest)
        self._ritz[begin:end, begin:end] = self._newest @ self._newest.mT
        self.size = end

    def _grow(self) -> None:
        """Make room for eight blocks more."""
        room = len(self._basis) + 8 * self._block
        basis, image, ritz = self._basis, self._image, self._ritz
        self._basis = basis.new_empty((room, basis.shape[1]))
        if self._low.is_turned:
            self._image = image.new_empty((self._long, room)).mT
        else:
            self._image = image.new_empty((room, self._long))
        self._ritz = ritz.new_zeros((room, room))
        self._basis[: self.size] = basis
        self._image[: self.size] = image
        self._ritz[: self.size, : self.size] = ritz


def _cholesky(gram: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return the lower factor of a Gram matrix of rows, its inverse, and whether there is one."""
    lower, info = torch.linalg.cholesky_ex(gram)
    eye = torch.eye(len(gram), dtype=gram.dtype)
    return lower, torch.linalg.solve_triangular(lower, eye, upper=False), not int(info)
