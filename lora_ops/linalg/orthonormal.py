"""Orthonormal rows, by products where possible: Householder QR is slow on thin blocks.

Rows, because a thin block of rows is one piece of memory and multiplies up to half again as fast
from the left as a thin block of columns does from the right.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Twice a float32's last place, and some for sums.
_OWN = 3e-7


def orthonormal(block: Tensor, basis: Tensor | None = None) -> Tensor:
    """Return orthonormal rows that span what `block` adds to `basis`.

    Projection, twice, and Cholesky QR with a float64 Gram matrix, which copes with condition numbers
    up to 1e7. One projection is not enough: where little is left of the block, what the basis lacks
    in orthogonality grows tenfold with each block. All of it again where some direction lost nearly
    everything, for then what is left is mostly rounding.

    Args:
        block: (..., k, n), float32.
        basis: (..., j, n), float32, orthonormal rows; None for an empty one.

    Source: Giraud et al. (2005) for "twice is enough"; Yamamoto et al. (2015) for CholeskyQR2.
    """
    for turn in range(3):
        length = wide(torch.linalg.vector_norm(block, dim=-1).amax(-1))
        if basis is not None:
            block = block - (block @ basis.mT) @ basis
            block = block - (block @ basis.mT) @ basis
        gram = wide(block)
        lower, info = torch.linalg.cholesky_ex(gram @ gram.mT)
        own = lower.diagonal(dim1=-2, dim2=-1)
        least = own.amin(-1)
        # A row that is rounding of the others passes the decomposition in float64, as one of nothing at
        # all does, and comes back: once made long, less than this of it is its own.
        is_rounding = own < _OWN * torch.linalg.vector_norm(gram, dim=-1)
        # Both asked at once: a device is waited for at each answer.
        failed = info.any() | is_rounding.any() if turn else info.any()
        asked = [failed, (least > 1e-3 * length).all()]
        is_dependent, is_settled = torch.stack(asked).tolist()
        if is_dependent:  # the matrix is of lower rank than the basis
            block = torch.linalg.qr(block.mT.cpu())[0].mT.to(block.device)
            continue
        eye = torch.eye(block.shape[-2], dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
        block = inverse.to(block.device, block.dtype) @ block
        if is_settled:
            break
    return block


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64; on the CPU where its device has no such numbers (Apple's)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
