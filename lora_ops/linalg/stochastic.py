"""Rounding up or down by chance, so that the mean is the number itself.

Where a change is smaller than the spacing of what is written, rounding to the nearest loses it; rounding
by chance keeps the sum over many weights, for noise of up to one spacing in each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .random_bits import random_bits

_EXPONENT = 0x7F800000
#: What can be rounded to by chance, by torch's names.
CHANCE = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def stochastic(tensor: Tensor, dtype: torch.dtype, key: int, first: int = 0) -> Tensor:
    """Round each number to one of its two neighbours, the nearer the likelier.

    A number that is one of `dtype` stays as it is, and so do NaN and infinity. Beyond the largest
    finite number it is that one: never infinity, never NaN. The chance is right to 1 / 65536.

    Args:
        tensor: float32, contiguous.
        dtype: float16, bfloat16, float8_e4m3fn or float8_e5m2; float32 is only passed through.
        key: Of the random stream, from `random_key`.
        first: Position of the first element in the whole tensor, so that parts are what the whole is.
    """
    if dtype == torch.float32:
        return tensor
    bits = random_bits(key, first, tensor.numel()).view(tensor.shape)
    return rounded_by(bits, tensor, dtype)


def rounded_by(bits: Tensor, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round as `stochastic` does, by random bits that are given.

    Args:
        bits: int16, of the tensor's shape, from `random_bits`.
        tensor: float32, contiguous.
        dtype: One of `CHANCE`.
    """
    limits = torch.finfo(dtype)
    # The power of two at or below each number, without subnormal ones of `dtype`, gives the spacing.
    sizes = tensor.abs().clamp_(max=limits.max)
    power = sizes.view(torch.int32).bitwise_and(_EXPONENT).view(torch.float32)
    spacing = power.clamp_(min=limits.smallest_normal).mul_(limits.eps)
    # Divisions and products by powers of two, and the remainder, are exact.
    result = _up_or_down(bits, sizes, spacing).clamp_(max=limits.max).copysign_(tensor)
    return torch.where(tensor.isfinite(), result, tensor).to(dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Chance:
    """Rounds numbers up or down by random bits, the nearer the likelier.

    Attributes:
        bits: int16, of the shape of the numbers, from `random_bits`.
    """

    bits: Tensor

    def to_floats(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """Round to the numbers of a dtype; see `rounded_by`."""
        return rounded_by(self.bits, numbers, dtype)

    def to_steps(self, numbers: Tensor, spacing: Tensor | float) -> Tensor:
        """Round to multiples of a spacing, which is that at each number; float32."""
        return _up_or_down(self.bits, numbers.abs(), spacing).copysign_(numbers)


def _up_or_down(bits: Tensor, sizes: Tensor, spacing: Tensor | float) -> Tensor:
    """Round sizes, which are overwritten, to multiples of their spacing."""
    chance = bits.to(sizes.device).float().add_((1 << 15) + 0.5).mul_(1 / (1 << 16))
    whole = torch.floor(sizes.div_(spacing))
    return whole.add_(sizes.sub_(whole).gt_(chance)).mul_(spacing)
