"""Telling a change from the rounding of storage: was the layer trained, or only saved again?"""

from __future__ import annotations

import torch
from torch import Tensor

# Elements looked at first: a trained layer shows itself at once, and most layers are trained.
_FIRST = 4096
_CHUNK = 1 << 20


def is_rounding(base: Tensor, tuned: Tensor) -> bool:
    """Whether no element differs by more than one spacing of the coarser dtype at its size.

    Args:
        base: Any float dtype.
        tuned: The same shape, any float dtype.
    """
    before, after = base.reshape(-1), tuned.reshape(-1)
    start, size = 0, _FIRST
    while start < len(before):
        if not _within_spacing(before[start : start + size], after[start : start + size]):
            return False
        start, size = start + size, _CHUNK
    return True


def _within_spacing(before: Tensor, after: Tensor) -> bool:
    old, new = before.double(), after.double()
    magnitude = torch.maximum(old.abs(), new.abs())
    spacing = torch.maximum(
        _spacing(magnitude, before.dtype),
        _spacing(magnitude, after.dtype),
    )
    return bool(((new - old).abs() <= spacing).all())


def _spacing(magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance between neighbouring numbers of a dtype at this magnitude, in float64."""
    limits = torch.finfo(dtype)
    exponent = torch.frexp(magnitude).exponent - 1
    normal = torch.ldexp(torch.full_like(magnitude, limits.eps), exponent)
    return normal.clamp(min=limits.smallest_normal * limits.eps)
