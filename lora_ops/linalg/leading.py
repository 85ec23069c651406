"""The leading eigenvectors of a Gram matrix, where all of them would cost several times as much."""

from __future__ import annotations

import torch
from torch import Tensor

from .steps import block_width, start

# Below this side all eigenvectors are found as quickly.
_LEAST_SIDE = 1024
# Share of the side that a basis may fill.
_MOST = 0.5
# Blocks between two looks at what the basis yields.
_EVERY = 3
# What the truncation may be off by, as a share of the least squared error: below float32's rounding.
_EXACT = 2e-8
# Less than this share of the trace is left by directions that float32 does not tell from each other.
_RESOLVED = 1e-2


def leading_vectors(gram: Tensor, rank: int, spare: int) -> Tensor | None:
    """Return the leading eigenvectors of one matrix as rows, proven to be them; None where that is not cheap.

    Block Lanczos with full reorthogonalisation. What the first `rank` of them miss of the largest possible
    sum of eigenvalues is bounded by their residuals over the distance to the last spare one; and that no larger
    eigenvalue was overlooked by the Cholesky factor of what is left of the matrix below the smallest wanted.

    Args:
        gram: (n, n), symmetric, positive semidefinite, float32 or float64.
        rank: How many are wanted.
        spare: How many are returned: a few more.

    Source: Parlett (1998), The symmetric eigenvalue problem, 11.7 for the bound; Sylvester's law of inertia.
    """
    side, block = gram.shape[-1], block_width(rank)
    most = int(_MOST * side) // block * block
    if gram.device.type != "cpu" or side < _LEAST_SIDE or most < 8 * spare:
        return None
    trace = float(gram.diagonal().double().sum())
    basis, ritz = gram.new_empty((most, side)), gram.new_zeros((most, most))
    newest = start(side, block, 0).to(gram.dtype)
    for size in range(block, most + 1, block):
        basis[size - block : size] = newest
        known = basis[:size]
        back = newest @ gram
        coefficients = back @ known.mT
        ritz[size - block : size, :size] = coefficients
        for _ in range(2):
            back = torch.addmm(back, back @ known.mT, known, alpha=-1)
        lower = torch.eye(block, dtype=gram.dtype)
        for _ in range(2):  # once leaves rows that were nearly dependent not quite orthogonal
            factor, info = torch.linalg.cholesky_ex(back @ back.mT)
            if int(info):
                return None
            back = torch.linalg.solve_triangular(factor, back, upper=False)
            lower = lower @ factor
        if size >= 5 * spare and size // block % _EVERY == 0:
            values, vectors = torch.linalg.eigh(ritz[:size, :size])
            values, vectors = values[-spare:].flip(-1), vectors[:, -spare:].flip(-1)
            left = trace - float(values[:rank].double().sum())
            if not left > _RESOLVED * trace:
                return None
            residuals = lower.mT @ vectors[-block:, :rank]
            apart = float(values[rank - 1] - values[-1])
            if float(residuals.double().square().sum()) <= _EXACT * left * apart:
                found = vectors.mT @ known
                return found if _are_largest(gram, found, values, float(values[rank - 1])) else None
        if size < most:
            newest = back
            ritz[size : size + block, size - block : size] = lower.mT
    return None


def _are_largest(gram: Tensor, vectors: Tensor, values: Tensor, least: float) -> bool:
    """Whether what eigenvectors leave of a matrix has no eigenvalue above the least one wanted."""
    below = torch.addmm(gram, vectors.mT, values[:, None] * vectors, beta=-1)
    below.diagonal().add_(least)
    return not int(torch.linalg.cholesky_ex(below)[1])
