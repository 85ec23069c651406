"""Norms that stay right on large matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from .._shapes import Float
from .orthonormal import wide


def frobenius(matrix: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch"]:
    """Return the Frobenius norm of each matrix, as float64.

    Rows are summed in float32 and joined in float64: a single float32 sum over tens of millions of
    entries loses the fifth digit.
    """
    rows = torch.linalg.vector_norm(matrix, dim=-1)
    return torch.linalg.vector_norm(wide(rows), dim=-1)


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
