"""Files of activations for tiny checkpoints, and what they are by definition, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor


def inputs_of(
    shapes: Mapping[str, tuple[int, ...]], seed: int = 3, rows: int = 200
) -> dict[str, Tensor]:
    """Inputs of each target, (rows, in * kernel), float64: some directions are used far more than others."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for target, shape in shapes.items():
        width = math.prod(shape[1:])
        sizes = torch.logspace(0, -3, width, dtype=torch.float64)[
            torch.randperm(width, generator=generator)
        ]
        mixed = torch.linalg.qr(torch.randn(width, width, generator=generator).double())[0]
        found[target] = torch.randn(rows, width, generator=generator).double() * sizes @ mixed
    return found


def as_grams(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their Gram matrices by the names of a file."""
    return {f"{target}.gram": (x.mT @ x).float() for target, x in inputs.items()}


def output_error(delta: Tensor, change: Tensor, x: Tensor) -> tuple[float, float]:
    """|(D - D') X^T| and |D X^T|, in float64 by numpy."""
    d, made, rows = (one.double().flatten(1).numpy() for one in (delta, change, x))
    return float(np.linalg.norm((d - made) @ rows.T)), float(np.linalg.norm(d @ rows.T))


def joined(parts: Iterable[tuple[float, float]]) -> float:
    """The error over several layers."""
    residuals, norms = zip(*parts, strict=True)
    return math.hypot(*residuals) / math.hypot(*norms)
