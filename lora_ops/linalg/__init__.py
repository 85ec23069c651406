"""Decompositions and norms: everything numerical about one matrix, or a stack of equal ones.

All functions take matrices as (..., out, in) in float32; the leading axes are a batch. Nothing is
written into, except where a name ends in an underscore.
"""

from __future__ import annotations

from .decompose import truncated_svd
from .gram import gram_svd, spectrum
from .krylov import krylov_svd
from .norms import frobenius, residual_
from .svd import Svd

__all__ = [
    "Svd",
    "frobenius",
    "gram_svd",
    "krylov_svd",
    "residual_",
    "spectrum",
    "truncated_svd",
]
