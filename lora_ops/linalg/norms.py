"""Norms that stay right on large matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ArgumentError
from ._shapes import Float
from .gram import SMALL, spectrum
from .orthonormal import orthonormal, wide

_ROWS, _STEPS = 2, 16
# Entries that are summed in float32.
_LONGEST = 1 << 14


def frobenius(matrix: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch"]:
    """Return the Frobenius norm of each matrix, as float64.

    Rows, or parts of long ones, are summed in float32 and joined in float64: a single float32 sum over tens of
    millions of entries is off in the third digit.
    """
    if matrix.shape[-1] > _LONGEST:
        parts = matrix.split(_LONGEST, dim=-1)
        rows = torch.cat([torch.linalg.vector_norm(part, dim=-1) for part in parts], dim=-1)
    else:
        rows = torch.linalg.vector_norm(matrix, dim=-1)
    return torch.linalg.vector_norm(wide(rows), dim=-1)


def spectral_norm(matrix: Float[Tensor, "out in"]) -> Float[Tensor, ""]:
    """Return the largest singular value, exact on small sides, else at most 1 % too small; float64.

    The last step of a subspace iteration alone falls short by 3 to 5 % on flat spectra; the Krylov
    space of all its steps, for the same products, by 0.3 % on random matrices, the hardest there are.

    Source: Musco & Musco (2015), Randomized block Krylov methods.
    """
    if min(matrix.shape) <= SMALL:
        return spectrum(matrix)[0]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((_ROWS, matrix.shape[1]), generator=generator)
    basis = rows = orthonormal(start.to(matrix))
    for _ in range(_STEPS):
        rows = orthonormal((rows @ matrix.mT) @ matrix, basis)
        basis = torch.cat([basis, rows])
    image = wide(basis @ matrix.mT)
    return torch.linalg.eigvalsh(image @ image.mT)[-1].clamp(min=0).sqrt()


#: Norms by which weights are compared.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {"spectral": spectral_norm, "frobenius": frobenius}


def inverse_norm(matrix: Float[Tensor, "out in"], norm: str) -> float:
    """Return one over a norm of `NORMS`; 1 for a matrix of zeros."""
    size = float(NORMS[norm](matrix))
    return 1 / size if size else 1.0


def check_norm(norm: str) -> None:
    """Refuse a name that no norm of `NORMS` has.

    Raises:
        ArgumentError: So it is.
    """
    if norm not in NORMS:
        raise ArgumentError(f"unknown norm `{norm}`; it is one of {', '.join(NORMS)}")


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
