"""Orthonormal columns, by products where possible: Householder QR is slow on thin blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormal(block: Tensor, basis: Tensor | None = None) -> Tensor:
    """Return orthonormal columns that span what `block` adds to `basis`.

    Projection, twice, and Cholesky QR with a float64 Gram matrix, which copes with condition numbers
    up to 1e7. One projection is not enough: where little is left of the block, what the basis lacks
    in orthogonality grows tenfold with each block. All of it again where some direction lost nearly
    everything, for then what is left is mostly rounding.

    Args:
        block: (..., n, k), float32.
        basis: (..., n, j), float32, orthonormal columns; None for an empty one.

    Source: Giraud et al. (2005) for "twice is enough"; Yamamoto et al. (2015) for CholeskyQR2.
    """
    for _ in range(3):
        length = wide(torch.linalg.vector_norm(block, dim=-2).amax(-1))
        if basis is not None:
            block = block - basis @ (basis.mT @ block)
            block = block - basis @ (basis.mT @ block)
        gram = wide(block)
        lower, info = torch.linalg.cholesky_ex(gram.mT @ gram)
        if bool(info.any()):  # dependent columns: the matrix is of lower rank than the basis
            block = torch.linalg.qr(block.cpu())[0].to(block.device)
            continue
        eye = torch.eye(block.shape[-1], dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower.mT, eye.expand_as(lower), upper=True)
        block = block @ inverse.to(block.device, block.dtype)
        if bool((lower.diagonal(dim1=-2, dim2=-1).amin(-1) > 1e-3 * length).all()):
            break
    return block


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64; on the CPU where its device has no such numbers (Apple's)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
