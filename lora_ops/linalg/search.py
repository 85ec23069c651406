"""The leading directions of large matrices, searched in bfloat16 and finished in float32.

A subspace need not be known to many digits: what a direction is off by costs energy with its square. So
the Krylov space is grown with products in bfloat16, and what it yields goes through the matrix itself once
more, in float32: half a step more, exact singular values of what was found, and an error that is known.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .steps import MOST, block_width, converged, start
from .svd import Svd, svd_from_right

# What bfloat16 loses is up to 1e-5 of the squared norm: nothing to what is missed if that is more than this
# share of it, a relative error of 14 %.
_RESOLVED = 0.02
# What the rows of a basis may have in common, and what they have after a projection.
_DRIFT, _ROUNDING = 1e-3, 1e-6
# Squares of what float32 holds outside this range are not safe in float32.
_SMALL, _LARGE = 1e-24, 1e24


def search_svd(
    matrix: Tensor, rank: int, total: Tensor, seed: int, tolerance: float, dtype: torch.dtype
) -> dict[int, Svd]:
    """Return by index the leading singular triplets of those matrices that `dtype` resolves well enough.

    Args:
        matrix: (b, out, in), float32, out at least in.
        rank: 1 to in.
        total: (b,), float64: squared Frobenius norms.
        seed: Of the random start.
        tolerance: See `krylov_svd`.
        dtype: Of the products.
    """
    count, _, side = matrix.shape
    block = min(block_width(rank), side)
    found: dict[int, Svd] = {}
    usable = (total > _SMALL) & (total < _LARGE)
    space = _Space(matrix, start(side, block, seed).expand(count, block, side), dtype)
    first = -(-rank // block) * block + 3 * block
    captured: list[Tensor] = []
    while True:
        # What is outside of the whole space is missed by its leading directions all the more.
        usable &= space.is_sound & (space.energy < (1 - _RESOLVED) * total)
        sought = [i for i, able in enumerate(usable.tolist()) if able and i not in found]
        if sought and space.size >= first:
            # Vectors cost twice what values do: they are computed once convergence is likely.
            vectors = None
            if captured:
                squares, vectors = torch.linalg.eigh(space.ritz(space.size))
                captured.append(squares[..., -rank:].double().sum(-1))
            else:
                sizes = (space.size - earlier * block for earlier in (3, 2, 1, 0))
                captured = [_held(space.ritz(size), rank) for size in sizes]
            for index in set(sought).intersection(converged(captured, total, tolerance)):
                if vectors is None:
                    _, vectors = torch.linalg.eigh(space.ritz(space.size))
                svd = space.triplets(index, vectors[index, :, -rank:])
                sought.remove(index)
                # More than the matrix itself confirms was promised by a basis that is none.
                short = captured[-1][index] - svd.s.square().sum()
                if bool(short <= tolerance * (total[index] - captured[-1][index])):
                    found[index] = svd
                else:
                    usable[index] = False
        if not sought or space.size + block > MOST * side:
            return found
        space.extend()


def _held(ritz: Tensor, rank: int) -> Tensor:
    """The energy of the leading directions."""
    return torch.linalg.eigvalsh(ritz)[..., -rank:].double().sum(-1)


class _Space:
    """A Krylov basis on the short side (rows), its image on the long one, and the Gram matrix of that.

    Attributes:
        size: Rows.
        is_sound: (b,): whether no block was linearly dependent.
    """

    def __init__(self, matrix: Tensor, first: Tensor, dtype: torch.dtype) -> None:
        count, long, side = matrix.shape
        self._matrix, self._low = matrix, matrix.to(dtype)
        self._block = first.shape[-2]
        self.size = 0
        self._drift = torch.full((count,), _ROUNDING)
        self.is_sound = torch.ones(count, dtype=torch.bool)
        self._basis = matrix.new_empty((count, 0, side))
        self._low_basis = self._low.new_empty((count, 0, side))
        self._image = self._low.new_empty((count, 0, long))
        self._ritz = matrix.new_empty((count, 0, 0))
        self._append(first)

    @property
    def energy(self) -> Tensor:
        """(b,), float64: what of the squared norm is within the space."""
        return self._ritz[:, : self.size, : self.size].diagonal(dim1=-2, dim2=-1).double().sum(-1)

    def ritz(self, size: int) -> Tensor:
        """The Gram matrix of the image of the first rows: its lower triangle."""
        return self._ritz[:, :size, :size]

    def extend(self) -> None:
        """Add one block: the newest one, sent through the matrix and back."""
        begin, end = self.size - self._block, self.size
        basis = self._basis[:, :end]
        back = _through(self._image[:, begin:end], self._low).float()
        coefficients = back @ basis.mT
        self._ritz[:, begin:end, :end] = coefficients
        left = torch.baddbmm(back, coefficients, basis, alpha=-1)
        # What the basis lacks in orthogonality grows as little is left of a block.
        shares = left.norm(dim=-1) / back.norm(dim=-1).clamp(min=torch.finfo(back.dtype).tiny)
        self._drift = self._drift / shares.amin(-1).clamp(min=_ROUNDING)
        again = self._drift > _DRIFT
        if bool(again.any()):
            twice = torch.baddbmm(left, left @ basis.mT, basis, alpha=-1)
            left = torch.where(again[:, None, None], twice, left)
            self._drift = torch.where(again, _ROUNDING, self._drift)
        lower, inverse, info = _cholesky(left)
        self.is_sound &= info == 0
        self._append(inverse @ left)
        self._ritz[:, end : self.size, begin:end] = lower.mT

    def triplets(self, index: int, vectors: Tensor) -> Svd:
        """Singular triplets of one matrix from eigenvectors, (size, k), of its Gram matrix."""
        rows = vectors.flip(-1).mT.to(self._image.dtype) @ self._image[index, : self.size]
        rows = torch.nn.functional.normalize(rows.float(), dim=-1)
        _, inverse, _ = _cholesky(rows)
        rows = inverse @ rows
        svd = svd_from_right(_through(rows, self._matrix[index]), rows).mT
        return replace(svd, search=(self._low.dtype,))

    def _append(self, newest: Tensor) -> None:
        begin, end = self.size, self.size + self._block
        if end > self._basis.shape[1]:
            self._grow()
        self._basis[:, begin:end] = newest
        self._low_basis[:, begin:end] = newest
        image = _through(self._low_basis[:, begin:end], self._low.mT)
        self._image[:, begin:end] = image
        image = image.float()
        self._ritz[:, begin:end, begin:end] = image @ image.mT
        self.size = end

    def _grow(self) -> None:
        """Make room for eight blocks more."""
        count, room, side = self._basis.shape
        room += 8 * self._block
        basis, low_basis, image, ritz = self._basis, self._low_basis, self._image, self._ritz
        self._basis = basis.new_empty((count, room, side))
        self._low_basis = low_basis.new_empty((count, room, side))
        # In the order in which products come out of it, which depends on that of the matrix.
        if self._low.stride(-1) == 1:
            self._image = image.new_empty((count, image.shape[-1], room)).mT
        else:
            self._image = image.new_empty((count, room, image.shape[-1]))
        self._ritz = ritz.new_zeros((count, room, room))
        self._basis[:, : self.size] = basis
        self._low_basis[:, : self.size] = low_basis
        self._image[:, : self.size] = image
        self._ritz[:, : self.size, : self.size] = ritz


def _through(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return `rows @ matrix`, the matrix in the order in which it lies in memory.

    A thin bfloat16 block times a stack that is turned takes six times as long, and times a stack of one
    a fifth longer than times the one.
    """
    if matrix.ndim == 3 and len(matrix) == 1:
        return _through(rows[0], matrix[0]).unsqueeze(0)
    return rows @ matrix if matrix.stride(-1) == 1 else (matrix.mT @ rows.mT).mT


def _cholesky(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lower factor of the Gram matrix of rows, its inverse, and where there is none."""
    lower, info = torch.linalg.cholesky_ex(rows @ rows.mT)
    eye = torch.eye(rows.shape[-2], dtype=rows.dtype)
    return lower, torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False), info
