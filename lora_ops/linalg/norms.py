"""Norms that stay right on large matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from .._shapes import Float
from .orthonormal import orthonormal, wide

_ROWS, _STEPS = 8, 8


def frobenius(matrix: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch"]:
    """Return the Frobenius norm of each matrix, as float64.

    Rows are summed in float32 and joined in float64: a single float32 sum over tens of millions of
    entries loses the fifth digit.
    """
    rows = torch.linalg.vector_norm(matrix, dim=-1)
    return torch.linalg.vector_norm(wide(rows), dim=-1)


def spectral_norm(matrix: Float[Tensor, "out in"]) -> Float[Tensor, ""]:
    """Return the largest singular value, at most 3 % too small, as float64.

    Subspace iteration with a few spare directions: exact on spectra that fall, short on flat ones.

    Source: Halko, Martinsson & Tropp (2011), Finding structure with randomness, 4.4.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((min(_ROWS, *matrix.shape), matrix.shape[1]), generator=generator)
    rows = orthonormal(start.to(matrix))
    for _ in range(_STEPS):
        rows = orthonormal((rows @ matrix.mT) @ matrix)
    image = wide(rows @ matrix.mT)
    return torch.linalg.eigvalsh(image @ image.mT)[-1].clamp(min=0).sqrt()


def residual_(
    delta: Float[Tensor, "*batch out in"],
    up: Float[Tensor, "*batch out rank"],
    down: Float[Tensor, "*batch rank in"],
) -> Float[Tensor, "*batch"]:
    """Return the Frobenius norm of ``delta - up @ down``, as float64; `delta` is overwritten.

    Taken from the difference itself. The identity with three inner products needs no memory either,
    but cancels: it cannot see a relative error below 1e-3.
    """
    if delta.ndim == 2:
        return frobenius(delta.addmm_(up, down, alpha=-1))
    return frobenius(delta.baddbmm_(up, down, alpha=-1))
