"""Encoding into mxfp8 and nvfp4: small blocks along the rows, each with a scale; see `blocks.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import exponents, in_tiles, unpacked
from .encoding import Chance, ScaledFloat, ScalingEncoder

_LIMIT = 448.0  # of float8 e4m3
_SMALLEST, _BIAS = 2.0**-127, 127
_LARGEST_FLOAT4 = 6.0
# A size s of a float of 4 bits has the code 2s up to 2, s + 2 up to 4, s / 2 + 4 up to 6: always the least of
# the three. A sum with the first number is rounded to a multiple of 1/2, 1 or 2, ties to even, and its bits,
# less the second number, count them.
_COUNTS = ((2.0**22, 0x4A800000), (2.0**23, 0x4B000000 - 2), (2.0**24, 0x4B800000 - 4))


class Mxfp8(ScalingEncoder):
    """Float8, and for every 32 of a row the least power of two that lets them fit."""

    def __init__(self, key: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__(key, shape, dtype)
        self._exponents = torch.zeros(shape[0], shape[1] // 32, dtype=torch.uint8)

    def scaled(self, rows: Tensor, first: int) -> Tensor:
        """The powers of two, one a number; 1 where there is nothing to scale."""
        largest = rows.view(len(rows), -1, 32).abs().amax(dim=-1)
        self.check(largest)
        exponents = (largest / _LIMIT).clamp_(min=_SMALLEST).log2_().ceil_().to(torch.int32) + _BIAS
        exponents.masked_fill_(largest == 0, 0)
        self._exponents[first : first + len(rows)] = exponents
        scales = (exponents << 23).view(torch.float32).masked_fill(exponents == 0, 1.0)
        return scales.repeat_interleave(32, dim=1)

    def divided(self, rows: Tensor, scales: Tensor) -> Tensor:
        """By division."""
        return (rows / scales).clamp_(-_LIMIT, _LIMIT)

    def nearest(self, numbers: Tensor) -> Tensor:
        """The nearest float8; ties to even."""
        return numbers.to(self.dtype)

    def by_chance(self, numbers: Tensor, chance: Chance) -> Tensor:
        """See `Encoder`."""
        return chance.to_floats(numbers, self.dtype)

    def parts(self) -> dict[str, Tensor]:
        """The exponents, in tiles."""
        return {"weight_scale": in_tiles(self._exponents).view(exponents())}


class Nvfp4(ScaledFloat):
    """Two floats of 4 bits a byte, a float8 for every 16 of a row, and a scale of the whole weight."""

    def __init__(self, key: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__(key, shape, dtype)
        self._limit = _LIMIT * _LARGEST_FLOAT4
        self._blocks = torch.zeros(shape[0], shape[1] // 16, dtype=torch.float8_e4m3fn)

    def scaled(self, rows: Tensor, first: int) -> Tensor:
        """Both scales, multiplied, one a number."""
        whole = self.scale
        largest = rows.view(len(rows), -1, 16).abs().amax(dim=-1)
        blocks = (largest / _LARGEST_FLOAT4 / whole).clamp_(max=_LIMIT).to(torch.float8_e4m3fn)
        self._blocks[first : first + len(rows)] = blocks
        scales = whole * blocks.float()
        return scales.repeat_interleave(16, dim=1)

    def divided(self, rows: Tensor, scales: Tensor) -> Tensor:
        """By division; zeros have no sign where a block holds nothing."""
        found = (rows / scales).clamp_(-_LARGEST_FLOAT4, _LARGEST_FLOAT4)
        return found if bool(scales.all()) else found.masked_fill_(scales == 0, 0.0)

    def nearest(self, numbers: Tensor) -> Tensor:
        """The nearest floats of 4 bits, ties to even, the high half of a byte first."""
        sizes, codes = numbers.abs(), torch.full_like(numbers, 7, dtype=torch.int32)
        sums = torch.empty_like(sizes)
        for added, bits in _COUNTS:
            torch.add(sizes, added, out=sums)
            torch.minimum(codes, sums.view(torch.int32).sub_(bits), out=codes)
        codes |= (numbers.view(torch.int32) >> 28).bitwise_and_(8)  # the sign
        pairs = codes.to(torch.uint8).view(torch.int16)  # the first is the low half
        return (pairs << 4).bitwise_or_(pairs >> 8).to(torch.uint8)

    def by_chance(self, numbers: Tensor, chance: Chance) -> Tensor:
        """See `Encoder`."""
        sizes = numbers.abs()
        gaps = (
            torch.full_like(sizes, 0.5).masked_fill_(sizes >= 2, 1.0).masked_fill_(sizes >= 4, 2.0)
        )
        return self.nearest(chance.to_steps(numbers, gaps))

    def widened(self, codes: Tensor) -> Tensor:
        """Fresh float32 of codes."""
        return unpacked(codes)

    def parts(self) -> dict[str, Tensor]:
        """The scales of blocks, in tiles, and that of the weight."""
        return {"weight_scale": in_tiles(self._blocks), "weight_scale_2": self.scale.reshape(())}
