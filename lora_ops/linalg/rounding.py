"""Telling a change from the rounding of storage: was the layer trained, or only saved again?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..spacing import spacing

# Elements looked at first: a trained layer shows itself at once, and most layers are trained.
_FIRST = 4096
_CHUNK = 1 << 20

#: How far apart stored numbers lie around values, float64, in the places from a flat index on.
Grid = Callable[[Tensor, int], Tensor]


def is_rounding(
    base: Tensor, tuned: Tensor, grids: tuple[Grid | None, Grid | None] = (None, None)
) -> bool:
    """Whether no element differs by more than one spacing of the coarser storage at its size.

    Args:
        base: Any float dtype.
        tuned: The same shape, any float dtype.
        grids: How far apart either storage may have one number; None: a spacing of its dtype.
    """
    sides = [
        (tensor.reshape(-1), grid or partial(_plain, tensor.dtype))
        for tensor, grid in zip((base, tuned), grids, strict=True)
    ]
    start, size, count = 0, _FIRST, base.numel()
    while start < count:
        old, new = (flat[start : start + size].double() for flat, _ in sides)
        magnitude = torch.maximum(old.abs(), new.abs())
        apart = torch.maximum(*(grid(magnitude, start) for _, grid in sides))
        if not bool(((new - old).abs() <= apart).all()):
            return False
        start, size = start + size, _CHUNK
    return True


def _plain(dtype: torch.dtype, values: Tensor, start: int) -> Tensor:
    del start  # everywhere the same
    return spacing(values, dtype)
