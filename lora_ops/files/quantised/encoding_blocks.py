"""Encoding into mxfp8 and nvfp4: small blocks along the rows, each with a scale; see `blocks.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import in_tiles, unpacked
from .encoding import Chance, ScaledFloat, ScalingEncoder

_LIMIT = torch.finfo(torch.float8_e4m3fn).max
#: What holds exponents; an older torch has no name for it, and ComfyUI takes bytes as well.
_EXPONENTS: torch.dtype = getattr(torch, "float8_e8m0fnu", torch.uint8)
_SMALLEST, _BIAS = 2.0**-127, 127
_LARGEST_FLOAT4 = 6.0
# Between the eight sizes of a float of 4 bits; a tie goes to the even code, so every other one is below.
_BETWEEN = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
_BETWEEN[1::2] = torch.nextafter(_BETWEEN[1::2], torch.zeros(3))


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
        return {"weight_scale": in_tiles(self._exponents).view(_EXPONENTS)}


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
        found = (rows / scales).masked_fill_(scales == 0, 0.0)
        return found.clamp_(-_LARGEST_FLOAT4, _LARGEST_FLOAT4)

    def nearest(self, numbers: Tensor) -> Tensor:
        """The nearest floats of 4 bits, ties to even, the high half of a byte first."""
        codes = numbers.signbit().to(torch.uint8) << 3
        sizes = numbers.abs()
        for between in _BETWEEN:
            codes.add_(sizes > between)
        return codes[:, ::2] << 4 | codes[:, 1::2]

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
