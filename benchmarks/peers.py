"""How other programs truncate a difference: their numerical method, written from its description.

Every function takes a float32 matrix (out, in) and a rank, and returns up (out, rank) and down
(rank, in). Where a program clamps its factors at a quantile, that is left out: it costs little time
and much accuracy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]


def full_svd(delta: Tensor, rank: int) -> Factors:
    """Kohya's extract_lora_from_models: an SVD with full matrices, then the first columns."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=True)
    return u[:, :rank] * s[:rank], vh[:rank]


def economy_svd(delta: Tensor, rank: int) -> Factors:
    """musubi-tuner, mergekit, LightX2V: the economy SVD."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return u[:, :rank] * s[:rank], vh[:rank]


def lowrank_7(delta: Tensor, rank: int) -> Factors:
    """KJNodes: svd_lowrank without oversampling, seven power iterations."""
    u, s, v = torch.svd_lowrank(delta, q=rank, niter=7)
    return u * s, v.mT


def lowrank_2(delta: Tensor, rank: int) -> Factors:
    """ModelUtils: svd_lowrank without oversampling, two power iterations."""
    u, s, v = torch.svd_lowrank(delta, q=rank, niter=2)
    return u * s, v.mT


def qr_of_factors(rank: int) -> Callable[[Factors], Factors]:
    """elias-gaeros/resize_lora: Householder QR of both factors, SVD of the small middle."""

    def resize(pair: Factors) -> Factors:
        left, inner_left = torch.linalg.qr(pair[0])
        right, inner_right = torch.linalg.qr(pair[1].mT)
        u, s, vh = torch.linalg.svd(inner_left @ inner_right.mT)
        return left @ (u[:, :rank] * s[:rank]), vh[:rank] @ right.mT

    return resize


# Name, function, and whether it is too slow to run on every layer.
PEERS: dict[str, tuple[Callable[[Tensor, int], Factors], bool]] = {
    "full SVD (kohya)": (full_svd, True),
    "economy SVD (musubi, mergekit)": (economy_svd, True),
    "svd_lowrank, 7 iterations (KJNodes)": (lowrank_7, False),
    "svd_lowrank, 2 iterations (ModelUtils)": (lowrank_2, False),
}
