"""Decompositions and norms: everything numerical about one matrix, or a stack of equal ones.

All functions take matrices as (..., out, in) in float32; the leading axes are a batch. Nothing is
written into, except where a name ends in an underscore.
"""

from __future__ import annotations

from .decompose import truncated_svd
from .factored import FactoredSvd, distance, factored_svd, gram_matrix, inner, thinned
from .gram import gram_svd, spectrum
from .kron import Kron, KronSvd, kron_svd
from .krylov import krylov_svd
from .norms import NORMS, check_norm, frobenius, inverse_norm, residual_, spectral_norm
from .operators import Operator, Part, part_inner
from .svd import Svd

__all__ = [
    "NORMS",
    "FactoredSvd",
    "Kron",
    "KronSvd",
    "Operator",
    "Part",
    "Svd",
    "check_norm",
    "distance",
    "factored_svd",
    "frobenius",
    "gram_matrix",
    "gram_svd",
    "inner",
    "inverse_norm",
    "kron_svd",
    "krylov_svd",
    "part_inner",
    "residual_",
    "spectral_norm",
    "spectrum",
    "thinned",
    "truncated_svd",
]
