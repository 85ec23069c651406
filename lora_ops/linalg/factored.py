"""The SVD of a product of two thin factors, exact, and never multiplied out.

Everything that depends on the long sides enters through two Gram matrices of the factors, formed in
float64: what is decomposed is as small as the rank. A QR of both factors gives the same at three to
four times the cost, most of it in Householder reflections of tall blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._shapes import Float
from .orthonormal import wide

# Singular values below this share of |up| |down| may be rounding of the float32 factors.
_FLOOR = 3e-8


@dataclass(frozen=True, slots=True, eq=False)
class FactoredSvd:
    """The SVD of `up @ down`, in the coordinates of the factors.

    Attributes:
        up: (..., out, r), float32.
        down: (..., r, in), float32.
        s: (..., r), float64, descending: all singular values; 0 where they are only rounding.
        left: (..., r, r), float64: `up @ left` has the left singular vectors as columns.
        right: (..., r, r), float64: `right @ down` has the right ones, times `s`, as rows.
    """

    up: Tensor
    down: Tensor
    s: Tensor
    left: Tensor
    right: Tensor

    def __getitem__(self, index: int) -> FactoredSvd:
        """The decomposition of one product of a stack."""
        fields = (self.up, self.down, self.s, self.left, self.right)
        return FactoredSvd(*(field[index] for field in fields))

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return up (..., out, rank) and down (..., rank, in) of the best approximation, float32.

        Each has the root of the singular values, as `Svd.factors` has.
        """
        root = self.s[..., :rank].sqrt()
        up = self.up @ (self.left[..., :rank] * root.unsqueeze(-2)).to(self.up)
        down = (self.right[..., :rank, :] * _inverse(root).unsqueeze(-1)).to(self.down) @ self.down
        return up, down

    def missed(self, up: Tensor, down: Tensor, square: Tensor) -> Tensor:
        """Frobenius norm of the difference between this product and another, `up @ down`; float64.

        Args:
            up: (out, q), float32.
            down: (q, in), float32.
            square: The squared norm of this product, float64.
        """
        up, down = up.to(self.up.device), down.to(self.up.device)
        return distance(self.up, self.down, up, down, square=square)


def factored_svd(
    up: Float[Tensor, "*batch out rank"], down: Float[Tensor, "*batch rank in"]
) -> FactoredSvd:
    """Return the SVD of `up @ down`, exact to float32 rounding of its factors.

    Args:
        up: (..., out, r), float32; r at most min(out, in), see `thinned`.
        down: (..., r, in), float32.

    With `up.mT @ up = R R.mT` and the eigenvectors W of `R.mT (down @ down.mT) R`, the left vectors
    are `up R^-T W` and the eigenvalues the squares. Columns of up and rows of down are brought to
    equal lengths first: a factor in 1e-6 and one in 1e6 are common.

    Source: the product form of Golub & Van Loan, Matrix Computations, 8.6.1, by Gram matrices.
    """
    left, right = gram_matrix(up.mT, up.mT), gram_matrix(down, down)
    grow, shrink = _balance(left, right)
    left = left * grow.unsqueeze(-1) * grow.unsqueeze(-2)
    right = right * shrink.unsqueeze(-1) * shrink.unsqueeze(-2)
    root, inverse = _root(left)
    squares, vectors = torch.linalg.eigh(root.mT @ right @ root)
    squares, vectors = squares.flip(-1), vectors.flip(-1)
    floor = _FLOOR**2 * _trace(left) * _trace(right)
    s = torch.where(squares > floor.unsqueeze(-1), squares, 0.0).sqrt()
    return FactoredSvd(
        up=up,
        down=down,
        s=s,
        left=grow.unsqueeze(-1) * (inverse.mT @ vectors),
        right=(vectors.mT @ root.mT) * shrink.unsqueeze(-2),
    )


def thinned(
    up: Float[Tensor, "*batch out rank"], down: Float[Tensor, "*batch rank in"]
) -> tuple[Tensor, Tensor]:
    """Return factors of the same product whose inner size is at most min(out, in).

    Where more columns stand side by side than the product has rows, or columns, the product itself
    and an identity are its shortest factors.
    """
    out, rank, width = up.shape[-2], up.shape[-1], down.shape[-1]
    if rank <= min(out, width):
        return up, down
    product = up @ down
    eye = torch.eye(min(out, width), dtype=up.dtype, device=up.device)
    eye = eye.expand(*up.shape[:-2], *eye.shape)
    return (eye, product) if out <= width else (product, eye)


def gram_matrix(
    one: Float[Tensor, "*batch a n"], other: Float[Tensor, "*batch b n"]
) -> Float[Tensor, "*batch a b"]:
    """Return `one @ other.mT`, summed in float64."""
    first = wide(one)
    return first @ (first if other is one else wide(other)).mT


def inner(
    up: Float[Tensor, "*batch out r"],
    down: Float[Tensor, "*batch r in"],
    other_up: Float[Tensor, "*batch out q"],
    other_down: Float[Tensor, "*batch q in"],
) -> Float[Tensor, "*batch"]:
    """Return the Frobenius inner product of `up @ down` and `other_up @ other_down`, float64.

    tr((up' up)^T (down down'^T)): the sum of two small Gram matrices' products, entry by entry.
    """
    return (gram_matrix(up.mT, other_up.mT) * gram_matrix(down, other_down)).sum((-2, -1))


def distance(
    up: Float[Tensor, "*batch out r"],
    down: Float[Tensor, "*batch r in"],
    other_up: Float[Tensor, "*batch out q"],
    other_down: Float[Tensor, "*batch q in"],
    *,
    square: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Return the Frobenius norm of `up @ down - other_up @ other_down`, float64.

    Squares cancel: nothing below 1e-8 of |up| |down| is seen, which is less than float32 holds.

    Args:
        up: (..., out, r), float32.
        down: (..., r, in), float32.
        other_up: (..., out, q), float32.
        other_down: (..., q, in), float32.
        square: The squared norm of the first product, where it is known.
    """
    if square is None:
        square = inner(up, down, up, down)
    both = inner(up, down, other_up, other_down)
    other = inner(other_up, other_down, other_up, other_down)
    return (square - 2 * both + other).clamp(min=0).sqrt()


def _balance(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors for the columns of up, and one over them for the rows of down.

    Both are 0 where a column or its row is zero: such a pair is nothing, however large the other.
    """
    columns = left.diagonal(dim1=-2, dim2=-1)
    rows = right.diagonal(dim1=-2, dim2=-1)
    ratio = (rows / columns).sqrt().sqrt()
    there = (columns > 0) & (rows > 0)
    return torch.where(there, ratio, 0.0), torch.where(there, 1 / ratio, 0.0)


def _root(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """R with R R.mT = matrix, positive semidefinite, and its (pseudo-)inverse."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    inverse = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    if not bool(info.any()):
        return lower, inverse
    # Columns depend on each other. Rounding leaves small values, which multiply small ones.
    values, vectors = torch.linalg.eigh(matrix)
    root = values.clamp(min=0).sqrt()
    other, back = vectors * root.unsqueeze(-2), _inverse(root).unsqueeze(-1) * vectors.mT
    # Of those alone whose columns do, so that none depends on the others of its batch.
    failed = (info != 0)[..., None, None]
    return torch.where(failed, other, lower), torch.where(failed, back, inverse)


def _inverse(values: Tensor) -> Tensor:
    """The reciprocal of each value; 0 for zeros."""
    return torch.where(values > 0, 1 / values, 0.0)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
