"""mxfp8 and nvfp4: small blocks along the rows, whose scales lie in the order that tensor cores read.

Layouts: the OCP specification of microscaling formats, and NVIDIA's of block scales for cuBLAS (tiles of
128 rows and 4 blocks); ComfyUI's files have no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ...spacing import spacing
from ..base import quote
from .fp8 import INPUT_SCALES, widened
from .headers import Headers
from .memory import PIECE
from .weight import Parts, Scaled

# A float of 4 bits (1 of sign, 2 of exponent, 1 of mantissa), by its bits.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def exponents() -> torch.dtype:
    """What holds exponents; an older torch has no name for it, and ComfyUI takes bytes as well."""
    return getattr(torch, "float8_e8m0fnu", torch.uint8)


@cache
def floats() -> Tensor:
    """The floats of four bits (16,), by their bits."""
    return torch.tensor([*_E2M1, *(-value for value in _E2M1)])


@cache
def _pairs() -> Tensor:
    """The two floats of a byte, the high half first, by the byte."""
    return torch.stack([floats().repeat_interleave(16), floats().repeat(16)], dim=1)


@dataclass(frozen=True)
class Mxfp8(Scaled):
    """Float8, and a power of two for every 32 of a row."""

    def codes(self, parts: Parts) -> Tensor:
        """The codes."""
        return widened(parts["codes"])

    def scales(self, parts: Parts) -> Tensor:
        """The powers of two: an exponent is that of a float32; the smallest stands for 0."""
        exponents = _in_rows(parts["scales"].view(torch.uint8), self.padded, 32)
        return (exponents.to(torch.int32) << 23).view(torch.float32)

    def gaps(self, numbers: Tensor) -> Tensor:
        """The unit in the last place."""
        return spacing(numbers, torch.float8_e4m3fn)


@dataclass(frozen=True)
class Nvfp4(Scaled):
    """Two floats of 4 bits a byte, a float8 for every 16 of a row, and a scale of the whole weight.

    With `columns` among its parts the weight is what the layer does: its input is multiplied by them.
    """

    def codes(self, parts: Parts) -> Tensor:
        """The floats."""
        return nibbles(parts["codes"], _pairs())

    def scales(self, parts: Parts) -> Tensor:
        """Both scales, multiplied first, as its programs do."""
        blocks = _in_rows(parts["scales"].view(torch.float8_e4m3fn), self.padded, 16)
        return blocks.float() * parts["whole"].float().reshape(())

    def gaps(self, numbers: Tensor) -> Tensor:
        """0.5 below 2, 1 below 4, 2 above."""
        size = numbers.abs()
        gaps = torch.full_like(size, 0.5).masked_fill_(size >= 2, 1.0).masked_fill_(size >= 4, 2.0)
        return gaps.masked_fill_(~size.isfinite(), torch.nan)

    def decode(self, parts: Parts) -> Tensor:
        """The products, and the columns'."""
        found = super().decode(parts)
        return found.mul_(parts["columns"].float()) if "columns" in parts else found

    def steps(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """Those of the codes, times all scales of the place."""
        columns = self._columns(parts, values, start)
        return super().steps(parts, values / columns, start) * columns.abs()

    def reach(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """That, and what the largest numbers miss where the scale of their block is rounded down."""
        blocks = _in_rows(parts["scales"].view(torch.float8_e4m3fn), self.padded, 16)
        whole = float(parts["whole"].float()) * _E2M1[-1]
        missed = self.run(spacing(blocks, torch.float8_e4m3fn) * whole, start, values)
        columns = self._columns(parts, values, start)
        return super().reach(parts, values, start).maximum(missed * columns.abs())

    def _columns(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """The scale of the column of each place."""
        if "columns" not in parts:
            return values.new_ones((), dtype=torch.float64)
        places = torch.arange(start, start + values.numel()) % self.matrix[1]
        return parts["columns"].double()[places].view(values.shape).to(values.device)


def nibbles(packed: Tensor, pairs: Tensor) -> Tensor:
    """Look up both halves of each byte: (rows, columns / 2) become (rows, columns) of fresh float32.

    Args:
        packed: Bytes.
        pairs: (256, 2) of float32, the numbers of each byte.
    """
    found = torch.empty(*packed.shape, 2, dtype=torch.float32)
    table = pairs.contiguous().view(torch.int64).view(-1)
    places, both = packed.view(torch.uint8).reshape(-1), found.view(torch.int64).view(-1)
    for some, out in zip(places.split(PIECE), both.split(PIECE), strict=True):
        torch.index_select(table, 0, some.to(torch.int32), out=out)
    return found.view(*packed.shape[:-1], 2 * packed.shape[-1])


def mxfp8(headers: Headers, layer: str, settings: dict[str, object]) -> Mxfp8:
    """A weight in mxfp8.

    Raises:
        QuantisedError: Its scales are missing, or of another shape.
    """
    parts = headers.needed(layer, "weight", "weight_scale")
    key, scales = parts["weight"], parts["weight_scale"]
    headers.check_dtype(layer, key, torch.float8_e4m3fn)
    rows, columns = _matrix(headers, layer, key, 1, 32)
    headers.check_dtype(layer, scales, torch.uint8, exponents())
    headers.check(layer, scales, _tiled(rows, columns // 32))
    shape = _logical(headers, layer, settings, (rows, columns), 32)
    beside = headers.held(layer, *INPUT_SCALES, "weight_scalar")
    held = {"codes": key, "scales": scales}
    return Mxfp8(key, shape, "mxfp8", held, (rows, columns), beside=beside)


def nvfp4(headers: Headers, layer: str, settings: dict[str, object]) -> Nvfp4:
    """A weight in nvfp4.

    Raises:
        QuantisedError: Its scales are missing, or of another shape.
    """
    parts = headers.needed(layer, "weight", "weight_scale", "weight_scale_2")
    key, scales, whole = parts["weight"], parts["weight_scale"], parts["weight_scale_2"]
    headers.check_dtype(layer, key, torch.uint8)
    rows, columns = _matrix(headers, layer, key, 2, 16)
    headers.check_dtype(layer, scales, torch.float8_e4m3fn, torch.uint8)
    headers.check(layer, scales, _tiled(rows, columns // 16))
    headers.check(layer, whole, (), (1,))
    headers.check_floats(layer, whole, *headers.held(layer, "pre_quant_scale"))
    shape = _logical(headers, layer, settings, (rows, columns), 16)
    held = {"codes": key, "scales": scales, "whole": whole}
    for pre in headers.held(layer, "pre_quant_scale"):
        headers.check(layer, pre, (shape[1],))
        held["columns"] = pre
    beside = headers.held(layer, *INPUT_SCALES)
    return Nvfp4(key, shape, "nvfp4", held, (rows, columns), beside=beside)


def _matrix(headers: Headers, layer: str, key: str, per_code: int, block: int) -> tuple[int, int]:
    """Rows and columns of what a matrix of codes holds."""
    shape = headers.shape(key)
    if len(shape) != 2 or not all(shape) or shape[1] * per_code % block:
        raise headers.damaged(
            layer, f"{quote(key)} has the shape {list(shape)}, which are no blocks of {block}"
        )
    return shape[0], shape[1] * per_code


def _tiled(rows: int, blocks: int) -> tuple[int, int]:
    """The shape of scales, in tiles of 128 rows and 4 blocks."""
    return -(-rows // 128) * 128, -(-blocks // 4) * 4


def _in_rows(scales: Tensor, padded: tuple[int, int], block: int) -> Tensor:
    """Scales as they lie in tiles, row by row: (rows, columns / block)."""
    high, wide = scales.shape[0] // 128, scales.shape[1] // 4
    tiles = scales.view(torch.uint8).reshape(high, wide, 32, 4, 4)
    found = tiles.permute(0, 3, 2, 1, 4).reshape(high * 128, wide * 4)
    return found[: padded[0], : padded[1] // block].contiguous().view(scales.dtype)


def in_tiles(scales: Tensor) -> Tensor:
    """Scales of rows and blocks as they lie in tiles, with zeros where there are none."""
    rows, blocks = scales.shape
    high, wide = _tiled(rows, blocks)
    padded = torch.zeros(high, wide, dtype=torch.uint8)
    padded[:rows, :blocks] = scales.view(torch.uint8)
    tiles = padded.view(high // 128, 4, 32, wide // 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(high, wide).view(scales.dtype)


def unpacked(codes: Tensor) -> Tensor:
    """Fresh float32 of floats of 4 bits, two a byte."""
    return nibbles(codes, _pairs())


def _logical(
    headers: Headers, layer: str, settings: dict[str, object], padded: tuple[int, int], to: int
) -> tuple[int, int]:
    """The shape of the weight, of which the file pads rows and columns to multiples.

    Some writers tell it. Else the rows are as many as the bias has numbers, and the columns are
    taken for whole: nothing in the file tells them.
    """
    told = settings.get("orig_shape")
    bias = headers.held(layer, "bias")
    shape: tuple[object, ...] = padded
    if isinstance(told, list):
        shape = tuple(told)
    elif bias and len(headers.shape(bias[0])) == 1:
        shape = (headers.shape(bias[0])[0], padded[1])
    sizes = [size for size in shape if isinstance(size, int) and size > 0]
    if len(sizes) == len(shape) == 2 and tuple(-(-size // to) * to for size in sizes) == padded:
        return sizes[0], sizes[1]
    raise headers.damaged(
        layer,
        f"its codes stand for {list(padded)} numbers, but the weight is told to have {list(shape)}",
    )
