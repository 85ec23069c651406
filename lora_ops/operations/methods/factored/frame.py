"""Changes of one weight in a common frame: orthonormal directions on both sides, small matrices between.

What is stacked from the factors of all inputs spans every change: with U the left singular vectors
of `[up1 | up2 | ...]`, R columns in all, and V the right ones of `[down1; down2; ...]`, each change
is `U core V.mT` without loss, its core at most (R, R). It is the frame of Core Space (Panariello et
al., 2025, arXiv:2509.17786), who take the factors as they are stored, and so does this: alphas and
strengths are in the cores.

All that is small is float64 and on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....linalg import gram_matrix

#: Singular values below this share of the largest are rounding of float32 factors.
FLOOR = 3e-8

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One side of a frame.

    Attributes:
        columns: (n, R), float32: the stacked columns.
        vectors: (n, c), float32: what stands on this side, the columns or the space itself.
        back: (c, k), float64: `vectors @ back` are the directions, orthonormal, the largest first.
        coordinates: (k, R), float64: of the stacked columns in these directions.
    """

    columns: Tensor
    vectors: Tensor
    back: Tensor
    coordinates: Tensor

    def made(self, coordinates: Tensor) -> Tensor:
        """Return vectors (n, q), float32, from their coordinates (k, q), float64."""
        return self.vectors @ (self.back @ coordinates).to(self.vectors)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Changes of one weight as small matrices in common directions.

    Attributes:
        left: Directions of the output side.
        right: Directions of the input side.
        sizes: How many of the R columns each change has, in order.
        scales: Factor on each change.
    """

    left: Side
    right: Side
    sizes: tuple[int, ...]
    scales: tuple[float, ...]

    def cores(self) -> Tensor:
        """Return the changes (T, k, k'), float64."""
        lefts = self.left.coordinates.split(self.sizes, dim=1)
        rights = self.right.coordinates.split(self.sizes, dim=1)
        cores = [
            scale * one @ other.mT
            for scale, one, other in zip(self.scales, lefts, rights, strict=True)
        ]
        return torch.stack(cores)

    def columns(self, numbers: Sequence[float]) -> Tensor:
        """Return a number for each change as one for each of its columns, times the change's scale (R,), float64."""
        each = [number * scale for number, scale in zip(numbers, self.scales, strict=True)]
        return torch.tensor(each, dtype=torch.float64).repeat_interleave(torch.tensor(self.sizes))

    def factors(self, one: Tensor, other: Tensor) -> Factors:
        """Return up (out, q) and down (q, in), float32, of `one @ other` in the frame.

        Args:
            one: (k, q), float64.
            other: (q, k'), float64.
        """
        return self.left.made(one), self.right.made(other.mT).mT

    def whole(self, core: Tensor) -> Factors:
        """Return the factors of a core (k, k'), float64."""
        if core.shape[0] <= core.shape[1]:
            return self.factors(torch.eye(len(core), dtype=core.dtype), core)
        return self.factors(core, torch.eye(core.shape[1], dtype=core.dtype))


def framed(
    up: Tensor,
    down: Tensor,
    sizes: Sequence[int],
    scales: Sequence[float],
    products: tuple[Tensor, Tensor] | None = None,
) -> Frame:
    """Return the frame of factors that stand side by side.

    Args:
        up: (out, R).
        down: (R, in).
        sizes: How many of the R columns each change has.
        scales: Factor on each change.
        products: (R, R) inner products of the columns of up and of the rows of down, float64, where they
            are known.
    """
    left, right = products or (None, None)
    return Frame(
        _side(up.float(), left), _side(down.float().mT, right), tuple(sizes), tuple(scales)
    )


def weighed(matrices: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the sum of matrices (T, rows, columns), float64, each times its weight."""
    return torch.tensordot(torch.tensor(weights, dtype=torch.float64), matrices, dims=1)


def _side(columns: Tensor, known: Tensor | None) -> Side:
    if columns.shape[1] > columns.shape[0]:  # more columns than directions: the space itself
        vectors, kept = _directions(gram_matrix(columns, columns).cpu())
        eye = torch.eye(len(columns), dtype=columns.dtype, device=columns.device)
        back = vectors[:, kept]
        return Side(columns, eye, back, back.mT @ columns.cpu().double())
    gram = (gram_matrix(columns.mT, columns.mT) if known is None else known).cpu()
    vectors, kept = _directions(gram)
    vectors = vectors[:, kept]
    root = (vectors.mT @ gram @ vectors).diagonal().sqrt()
    return Side(columns, columns, vectors / root, root.unsqueeze(-1) * vectors.mT)


def _directions(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvectors of a Gram matrix, the largest first, and which are more than rounding."""
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(-1), vectors.flip(-1)
    return vectors, values > FLOOR**2 * values[0].clamp(min=0)
