"""One subspace for the rows of several matrices and one for their columns: a partial Tucker decomposition.

Alternating eigenproblems gain ever less from step to step, where energies beside the kept ones are nearly as
large: of three unrelated LoRAs of rank 32 the subspaces have two digits after fifty of them. So each is followed by a step of
Newton's method on both, solved by conjugate gradients that the eigenvalues precondition; three or four are enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# What another step may still gain, as a share of the energy; and the most steps.
_TOLERANCE = 1e-10
_STEPS = 500
# How far a step of Newton's is solved, as a share of the gradient, and in how many products at most.
_SOLVED = 0.1
_PRODUCTS = 30
# The least difference of energies, as a share of the largest, that a step is divided by.
_LEAST = 1e-6


def common_subspaces(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return orthonormal (k, rank) and (k', rank) that keep most of the squares of `left.mT matrix right`.

    Args:
        matrices: (T, k, k'), float64.
        rank: At most k and k'.
    """
    total = float(matrices.square().sum())
    right = _basis(matrices.mT)[:, :rank]
    kept, alternated = 0.0, right
    left = turned_right = right
    for _ in range(_STEPS):
        left, turned_right = _alternated(matrices, right)
        turned = left.mT @ matrices @ turned_right
        now = float(turned[:, :rank, :rank].square().sum())
        if now < kept and right is not alternated:  # too far for Newton's: on from before
            right = alternated
            continue
        if rank in matrices.shape[1:]:  # one side is whole: the other is found at once
            break
        near = _Near.of(turned, rank)
        if near.gain <= _TOLERANCE * total:
            break
        kept, alternated = now, turned_right[:, :rank]
        right = torch.linalg.qr(alternated + turned_right[:, rank:] @ near.step())[0]
    return left[:, :rank], turned_right[:, :rank]


def _alternated(matrices: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Whole bases, the best directions first: of the rows for these columns, then of the columns for those."""
    left = _basis(matrices @ right)
    return left, _basis(matrices.mT @ left[:, : right.shape[1]])


def _basis(seen: Tensor) -> Tensor:
    """All directions of the rows, those of the most energy first."""
    return torch.linalg.eigh((seen @ seen.mT).sum(0)).eigenvectors.flip(-1)


@dataclass(frozen=True, slots=True, eq=False)
class _Near:
    """The energy near two subspaces, to the second order in what is added to them from beside.

    With matrices `[[a, b], [c, d]]` in bases whose first directions are the subspaces, adding x of the other rows and y of the
    other columns keeps `a + x.mT c + b y + x.mT d y - (x.mT x a + a y.mT y) / 2`.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    slopes: tuple[Tensor, Tensor]
    gaps: tuple[Tensor, Tensor]
    squares: tuple[Tensor, Tensor]

    @staticmethod
    def of(turned: Tensor, rank: int) -> _Near:
        """From the matrices in these bases, (T, k, k')."""
        a, b = turned[:, :rank, :rank], turned[:, :rank, rank:]
        c, d = turned[:, rank:, :rank], turned[:, rank:, rank:]
        rows = turned[:, :, :rank].square().sum((0, 2))
        columns = turned[:, :rank].square().sum((0, 1))
        slopes = (c @ a.mT).sum(0), (b.mT @ a).sum(0)
        squares = (a @ a.mT).sum(0), (a.mT @ a).sum(0)
        return _Near(a, b, c, d, slopes, (_gaps(rows, rank), _gaps(columns, rank)), squares)

    @property
    def gain(self) -> float:
        """About what another eigenproblem on both sides would gain."""
        return 0.5 * _inner(self.slopes, self._divided(self.slopes))

    def step(self) -> Tensor:
        """What is to be added to the subspace of the columns, from beside."""
        x, y = (torch.zeros_like(one) for one in self.slopes)
        rest = self.slopes
        way = divided = self._divided(rest)
        size = first = _inner(rest, divided)
        for _ in range(_PRODUCTS):
            bent = self._bent(*way)
            curvature = _inner(way, bent)
            if curvature <= 0:
                break
            length = size / curvature
            x, y = x + length * way[0], y + length * way[1]
            rest = rest[0] - length * bent[0], rest[1] - length * bent[1]
            divided = self._divided(rest)
            size, before = _inner(rest, divided), size
            if size <= _SOLVED**2 * first:
                break
            more = size / before
            way = divided[0] + more * way[0], divided[1] + more * way[1]
        return y

    def _bent(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The second derivative, turned around, times a change of both."""
        both = x.mT @ self.c + self.b @ y
        on_rows = x @ self.squares[0] - (self.c @ both.mT + (self.d @ y) @ self.a.mT).sum(0)
        on_columns = y @ self.squares[1] - (self.b.mT @ both + (self.d.mT @ x) @ self.a).sum(0)
        return on_rows, on_columns

    def _divided(self, slopes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return slopes[0] / self.gaps[0], slopes[1] / self.gaps[1]


def _gaps(energies: Tensor, rank: int) -> Tensor:
    """By how much each kept direction has more energy than each other one."""
    return (energies[:rank] - energies[rank:, None]).clamp(min=_LEAST * float(energies[0]) or 1.0)


def _inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    return float((one[0] * other[0]).sum() + (one[1] * other[1]).sum())
