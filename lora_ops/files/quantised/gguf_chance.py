"""GGUF's evenly spaced blocks, each number rounded up or down by chance; the scales are those of the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .encoding import Chance

_BLOCK = 32  # numbers


@dataclass(frozen=True, slots=True)
class Steps:
    """What a block is: a scale in float16, what is added, if anything is, and whole numbers times the scale.

    Attributes:
        bits: Of a whole number.
        zero: Which of them stands for 0.
        adds: Whether each block has a number that is added.
    """

    bits: int
    zero: int = 0
    adds: bool = False

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest whole number."""
        return (-127, 127) if self.bits == 8 else (0, (1 << self.bits) - 1)


#: By type.
STEPS: Mapping[str, Steps] = {
    "Q8_0": Steps(8),
    "Q5_1": Steps(5, adds=True),
    "Q5_0": Steps(5, zero=16),
    "Q4_1": Steps(4, adds=True),
    "Q4_0": Steps(4, zero=8),
}


def by_chance(type: str, codes: Tensor, rows: Tensor, chance: Chance) -> Tensor:
    """Return blocks with the scales of others, whose numbers are one of their two neighbours each.

    What lies beyond a block's largest whole number becomes that.

    Args:
        type: One of `STEPS`.
        codes: The numbers as blocks, to the nearest: (rows, bytes).
        rows: The numbers, float32, whole blocks.
        chance: By which they are rounded, of the shape of the rows.
    """
    steps, heads = STEPS[type], 4 if STEPS[type].adds else 2
    blocks = codes.view(rows.numel() // _BLOCK, -1)
    scales = blocks[:, :heads].contiguous().view(torch.float16).float()
    numbers = rows.reshape(-1, _BLOCK)
    numbers = numbers - scales[:, 1:] if steps.adds else numbers.clone()
    places = numbers.div_(scales[:, :1]).add_(steps.zero)
    places.masked_fill_(scales[:, :1] == 0, steps.zero)
    whole = chance.to_steps(places.view(rows.shape), 1.0).clamp_(*steps.limits).view(-1, _BLOCK)
    return torch.cat([blocks[:, :heads], _packed(whole, steps.bits)], dim=1).view(codes.shape)


def _packed(whole: Tensor, bits: int) -> Tensor:
    """Whole numbers as bytes: of fewer than 8 bits two a byte, 16 numbers apart, after their fifth bits."""
    if bits == 8:
        return whole.to(torch.int8).view(torch.uint8)
    some = whole.to(torch.uint8)
    low = some & 15
    pairs = low[:, : _BLOCK // 2] | low[:, _BLOCK // 2 :] << 4
    if bits == 4:
        return pairs
    fifth = (some >> 4).view(-1, 4, 8) << torch.arange(8, dtype=torch.uint8)
    return torch.cat([fifth.sum(dim=2, dtype=torch.uint8), pairs], dim=1)
