"""How far apart the numbers of a dtype lie: what cannot be told from rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EXPONENT = 0x7FF << 52  # of the bits of float64


def spacing(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance from each value to the next larger number of a dtype, by magnitude.

    Args:
        values: Any shape, any real dtype; they need not be numbers of `dtype`. One that lies beyond
            its range gets what the next powers of two would have.
        dtype: Floating point; whole numbers are 1 apart.

    Returns:
        float64, of the same shape and device: the unit in the last place, which below the smallest
        normal number stays that of the subnormal ones; NaN for what is not finite.
    """
    magnitude = values.double().abs()
    if not dtype.is_floating_point:
        return torch.ones_like(magnitude)
    limits = torch.finfo(dtype)
    # The bits of the exponent alone are the power of two below: a tenth of the time of `frexp`.
    powers = (magnitude.view(torch.int64) & _EXPONENT).view(torch.float64)
    found = powers.clamp(min=limits.smallest_normal).mul_(limits.eps)
    return found.masked_fill_(powers.isinf(), math.nan)
