"""Slow float64 definitions that the fast code is held against; nothing here imports lorakit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

# Spectra that weights' changes have, flat to steep, by index from 0.
DECAYS = (0.2, 0.5, 0.8, 1.5)

# How far a product of factors rounded to this dtype may be from the product, relatively.
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def power(count: int, exponent: float) -> Tensor:
    """Singular values i^-exponent, i from 1; float64."""
    return torch.arange(1, count + 1, dtype=torch.float64) ** -exponent


def steps(count: int) -> Tensor:
    """Plateaus of 16 equal singular values, each a third of the one before, then a floor."""
    return torch.maximum(3.0 ** -(torch.arange(count) // 16).double(), torch.tensor(1e-2).double())


def with_spectrum(out: int, into: int, values: Tensor, seed: int = 0) -> Tensor:
    """A float64 matrix with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)

    def basis(side: int) -> Tensor:
        random = torch.randn(side, len(values), generator=generator, dtype=torch.float64)
        return torch.linalg.qr(random)[0]

    return (basis(out) * values) @ basis(into).mT


def singular_values(matrix: Tensor) -> np.ndarray:
    """All singular values by LAPACK's full SVD in float64, through numpy."""
    return np.linalg.svd(matrix.double().numpy(), compute_uv=False)


def best_error(matrix: Tensor, rank: int) -> float:
    """The least Frobenius error of any matrix of that rank (Eckart and Young, 1936)."""
    return math.sqrt(math.fsum(singular_values(matrix)[rank:] ** 2))


def error_of(matrix: Tensor, approximation: Tensor) -> float:
    """Frobenius norm of the difference, in float64."""
    return float(np.linalg.norm(matrix.double().numpy() - approximation.double().numpy()))


def change(up: Tensor, down: Tensor, alpha: float | None) -> Tensor:
    """The change that a LoRA layer means, from the definition, in float64: alpha / rank * up @ down."""
    rank = down.shape[0]
    scale = 1.0 if alpha is None else alpha / rank
    flat = scale * (up.double().reshape(len(up), rank) @ down.double().reshape(rank, -1))
    return flat.reshape(len(up), *down.shape[1:])


# --- Rank rules: how many singular values are kept, one at a time -------------------------------


def keep_until_share(terms: Sequence[float], goal: float) -> int:
    """Add terms one by one until their sum reaches the goal."""
    held = 0.0
    for count, term in enumerate(terms, start=1):
        held += term
        if held >= goal:
            return count
    return len(terms)


def energy(s: Sequence[float], value: float) -> int:
    """KJNodes' adaptive_energy, PEFT's float: the sum of squares reaches that share of its total."""
    return keep_until_share([x * x for x in s], value * sum(x * x for x in s))


def fro(s: Sequence[float], value: float) -> int:
    """The index of kohya's sv_fro: the sum of squares reaches the *square* of the share."""
    return keep_until_share([x * x for x in s], value * value * sum(x * x for x in s))


def error(s: Sequence[float], value: float) -> int:
    """The smallest rank whose tail, as a share of the norm, is no longer than that."""
    whole = math.sqrt(math.fsum(x * x for x in s))
    for count in range(1, len(s) + 1):
        if math.sqrt(math.fsum(x * x for x in s[count:])) <= value * whole:
            return count
    return len(s)


def cumulative(s: Sequence[float], value: float) -> int:
    """The index of kohya's sv_cumulative: the plain sum reaches that share of its total."""
    return keep_until_share(s, value * sum(s))


def ratio(s: Sequence[float], value: float) -> int:
    """The index of kohya's sv_ratio: those above the largest divided by the value."""
    return sum(x > s[0] / value for x in s)


def threshold(s: Sequence[float], value: float) -> int:
    """mergekit's sv-epsilon: those above the value; a layer keeps one at least."""
    return max(1, sum(x > value for x in s))


def knee(s: Sequence[float], _value: float) -> int:
    """Kneedle: the point of the normalised curve that lies furthest below its chord."""
    first, last, end = s[0], s[-1], len(s) - 1
    if end < 2 or first == last:
        return len(s)
    below = [(1 - i / end) - (x - last) / (first - last) for i, x in enumerate(s)]
    return below.index(max(below)) + 1


RULES: dict[str, Callable[[Sequence[float], float], int]] = {
    "energy": energy,
    "fro": fro,
    "error": error,
    "cumulative": cumulative,
    "ratio": ratio,
    "threshold": threshold,
    "knee": knee,
}


def kohya(s: Sequence[float], name: str, value: float) -> int:
    """kohya's count: `rank_resize` of networks/resize_lora.py in sd-scripts 48d368f, February 2026.

    Its index is the rule's count, at most all but one; what is kept is that and one more.
    """
    return max(1, min(RULES[name](s, value), len(s) - 1)) + 1


# --- Numbers as a dtype holds them --------------------------------------------------------------


def finite_values(dtype: torch.dtype) -> Tensor:
    """Every finite number that an 8- or 16-bit float has, ascending, once, as float64."""
    integer = torch.int8 if dtype.itemsize == 1 else torch.int16
    limits = torch.iinfo(integer)
    stored = torch.arange(limits.min, limits.max + 1, dtype=torch.int32).to(integer).view(dtype)
    values = stored.double()
    return torch.unique(values[values.isfinite()])
