"""The leading directions of large matrices, searched in fewer bits and finished in float32.

A subspace need not be known to many digits: what a direction is off by costs energy with its square. So
the Krylov space is grown with products in int8 or bfloat16, and what it yields goes through the matrix itself once
more, in float32: half a step more, exact singular values of what was found, and an error that is known.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .lowered import Lowered, lowered
from .steps import MOST, block_width, converged, start
from .svd import Svd, svd_from_right

# What fewer bits lose is up to 1e-5 of the squared norm: nothing to what is missed if that is more than this
# share of it, a relative error of 14 %.
_RESOLVED = 0.02
# What the rows of a basis may have in common, and what they have after a projection.
_DRIFT, _ROUNDING = 1e-3, 1e-6
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
    block = min(block_width(rank), side)
    space = _Space(low, start(side, block, seed), len(matrix))
    first = -(-rank // block) * block + 3 * block
    captured: list[Tensor] = []
    # What is outside of the whole space is missed by its leading directions all the more.
    while space.is_sound and space.energy < (1 - _RESOLVED) * norm:
        if space.size >= first:
            # Vectors cost twice what values do: they are computed once convergence is likely.
            vectors = None
            if captured:
                squares, vectors = torch.linalg.eigh(space.ritz(space.size))
                captured.append(squares[None, -rank:].double().sum(-1))
            else:
                sizes = (space.size - earlier * block for earlier in (3, 2, 1, 0))
                captured = [_held(space.ritz(size), rank) for size in sizes]
            if converged(captured, total[None], tolerance):
                if vectors is None:
                    vectors = torch.linalg.eigh(space.ritz(space.size))[1]
                svd = space.triplets(matrix, vectors[:, -rank:])
                # More than the matrix itself confirms was promised by a basis that is none.
                promised = captured[-1][0]
                short = (1 - low.blur) * promised - svd.s.square().sum()
                return svd if bool(short <= tolerance * (total - promised)) else None
        if space.size + block > MOST * side:
            return None
        space.extend()
    return None


def _held(ritz: Tensor, rank: int) -> Tensor:
    """The energy of the leading directions, (1,)."""
    return torch.linalg.eigvalsh(ritz)[None, -rank:].double().sum(-1)


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
        self._image = first.new_empty((0, long), dtype=torch.bfloat16)
        self._ritz = first.new_empty((0, 0))
        self._append(first)

    @property
    def energy(self) -> float:
        """What of the squared norm is within the space."""
        return float(self.ritz(self.size).diagonal().double().sum())

    def ritz(self, size: int) -> Tensor:
        """The Gram matrix of the image of the first rows: its lower triangle."""
        return self._ritz[:size, :size]

    def extend(self) -> None:
        """Add one block: the newest one, sent through the matrix and back."""
        begin, end = self.size - self._block, self.size
        basis = self._basis[:end]
        back = self._low.times(self._newest)
        coefficients = back @ basis.mT
        self._ritz[begin:end, :end] = coefficients
        left = torch.addmm(back, coefficients, basis, alpha=-1)
        # What the basis lacks in orthogonality grows as little is left of a block.
        shares = left.norm(dim=-1) / back.norm(dim=-1).clamp(min=torch.finfo(back.dtype).tiny)
        self._drift = self._drift / max(float(shares.amin()), _ROUNDING)
        if self._drift > _DRIFT:
            left = torch.addmm(left, left @ basis.mT, basis, alpha=-1)
            self._drift = _ROUNDING
        lower, inverse, self.is_sound = _cholesky(left)
        self._append(inverse @ left)
        self._ritz[end : self.size, begin:end] = lower.mT

    def triplets(self, matrix: Tensor, vectors: Tensor) -> Svd:
        """Singular triplets of the matrix from eigenvectors, (size, k), of the Gram matrix."""
        rows = vectors.flip(-1).mT.to(self._image.dtype) @ self._image[: self.size]
        rows = torch.nn.functional.normalize(rows.float(), dim=-1)
        _, inverse, _ = _cholesky(rows)
        rows = inverse @ rows
        through = rows @ matrix if matrix.stride(-1) == 1 else (matrix.mT @ rows.mT).mT
        return replace(svd_from_right(through, rows).mT, search=(self._low.dtype,))

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


def _cholesky(rows: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return the lower factor of the Gram matrix of rows, its inverse, and whether there is one."""
    lower, info = torch.linalg.cholesky_ex(rows @ rows.mT)
    eye = torch.eye(len(rows), dtype=rows.dtype)
    return lower, torch.linalg.solve_triangular(lower, eye, upper=False), not int(info)
