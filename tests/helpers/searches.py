"""Searches for directions of a matrix, and what each of them has to be, in whatever numbers."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import best_error, error_of
from torch import Tensor

from lorakit.lora_ops.linalg import Svd, frobenius, krylov_svd

#: The stated bound on `excess`.
EXCESS = 1e-3


def searched(matrix: Tensor, rank: int, seed: int = 0) -> Svd:
    return krylov_svd(matrix, rank, frobenius(matrix).square(), seed)


def excess(matrix: Tensor, svd: Svd) -> float:
    """How much worse than the best of that rank, as a share of the best."""
    best = best_error(matrix, len(svd.s))
    return error_of(matrix, (svd.u.double() * svd.s) @ svd.vh.double()) / best - 1


def check_as_good_as_float32(matrix: Tensor, svd: Svd) -> None:
    """Within the stated excess; directions of length 1 and apart; values whose squares are what is kept."""
    assert excess(matrix, svd) <= EXCESS
    eye = torch.eye(len(svd.s))
    assert torch.allclose(svd.u.mT @ svd.u, eye, atol=3e-6)
    assert torch.allclose(svd.vh @ svd.vh.mT, eye, atol=3e-6)
    kept = math.hypot(*svd.s.tolist(), error_of(matrix, (svd.u.double() * svd.s) @ svd.vh.double()))
    assert kept == pytest.approx(float(frobenius(matrix)), rel=1e-6)
