"""bitsandbytes: 4-bit numbers of a table (nf4, fp4) in blocks, and int8 by rows.

Blocks are of the flat weight and run across rows; the last may be short. In nested files the sizes of
the blocks are themselves quantised, in blocks of 256.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ...spacing import spacing
from .blocks import nibbles
from .headers import Headers
from .integers import Integers
from .memory import rounded
from .weight import Parts, QuantisedWeight

#: What ends the name of the tensor that describes a 4-bit weight.
NF4, FP4 = ".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"
INT8 = ".SCB"

_RESULTS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Blocks(QuantisedWeight):
    """Two numbers of a table a byte, the high half first, times the size of their block.

    Attributes:
        block: Numbers of a block.
        nested: Blocks whose sizes are quantised together.
        offset: What is added to nested sizes.
        dtype: What the program rounds the numbers to.
    """

    block: int
    nested: int
    offset: float
    dtype: torch.dtype

    def decode(self, parts: Parts) -> Tensor:
        """The products."""
        table = parts["table"].float()
        pairs = torch.stack([table.repeat_interleave(16), table.repeat(16)], dim=1)
        packed = parts["codes"].contiguous().view(torch.uint8).reshape(-1)
        numbers = nibbles(packed, pairs)
        count, sizes = math.prod(self.shape), self._sizes(parts)
        whole = count // self.block
        numbers[: whole * self.block].view(whole, self.block).mul_(sizes[:whole, None])
        numbers[whole * self.block :].mul_(sizes[-1])
        return rounded(numbers[:count], self.dtype).view(self.shape)

    def steps(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """The wider of the gaps beside the nearest number of the table, times the size of the block.

        A nested size is rounded, too, and with it all numbers of the block.
        """
        places = torch.arange(start, start + values.numel()) // self.block
        sizes, unsure = self._sizes(parts).double().abs()[places], self._unsure(parts)[places]
        table, wider = _gaps(parts["table"])
        numbers = (values.double().reshape(-1).cpu() / (sizes + unsure)).nan_to_num()
        middles = (table[1:] + table[:-1]) / 2
        # Values may be magnitudes: either end counts.
        gaps = torch.maximum(*(wider[torch.bucketize(x, middles)] for x in (numbers, -numbers)))
        found = gaps * (sizes + unsure) + unsure
        found.masked_fill_(~values.reshape(-1).cpu().isfinite(), torch.nan)
        return found.view(values.shape).to(values.device)

    def reach(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """That, and the rounding of the numbers."""
        return super().reach(parts, values, start) + spacing(values, self.dtype)

    def _sizes(self, parts: Parts) -> Tensor:
        sizes = parts["sizes"]
        if "nested sizes" not in parts:
            return sizes.float()
        found = parts["nested table"].float()[sizes.to(torch.int32)]
        outer = parts["nested sizes"].float().repeat_interleave(self.nested)[: len(found)]
        return found.mul_(outer).add_(self.offset)

    def _unsure(self, parts: Parts) -> Tensor:
        """How far the size of each block may be off."""
        sizes = parts["sizes"]
        if "nested sizes" not in parts:
            return torch.zeros(len(sizes), dtype=torch.float64)
        codes = parts["nested table"].double()[sizes.to(torch.int32)]
        table, wider = _gaps(parts["nested table"])
        outer = parts["nested sizes"].double().repeat_interleave(self.nested)[: len(sizes)]
        return wider[torch.bucketize(codes, table)] * outer


def _gaps(table: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers in order, and the wider of the gaps beside each; float64."""
    ordered = table.double().unique()
    gaps = ordered.diff()
    return ordered, torch.maximum(torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]]))


def four_bits(headers: Headers, layer: str, ending: str) -> Blocks:
    """A weight in nf4 or fp4.

    Raises:
        QuantisedError: Its description is none, or a table or the sizes are missing or of another shape.
    """
    state_key = layer + ending
    state = headers.settings(layer, state_key)
    parts = headers.needed(layer, "weight", "weight.absmax", "weight.quant_map")
    key, sizes, table = parts.values()
    shape, block, dtype = state.get("shape"), state.get("blocksize"), state.get("dtype")
    if (
        not isinstance(shape, list)
        or not all(isinstance(size, int) and size > 0 for size in cast("list[object]", shape))
        or not isinstance(block, int)
        or block < 1
        or dtype not in _RESULTS
    ):
        raise headers.damaged(layer, f"`{state_key}` tells no shape, dtype and size of blocks")
    sides = tuple(cast("list[int]", shape))
    count = math.prod(sides)
    if math.prod(headers.shape(key)) * headers.dtype(key).itemsize != -(-count // 2):
        raise headers.damaged(layer, f"`{key}` does not hold {count} numbers of 4 bits")
    blocks = math.ceil(count / block)
    headers.check(layer, sizes, (blocks,))
    headers.check(layer, table, (16,))
    headers.check_floats(layer, table)
    held = {"codes": key, "sizes": sizes, "table": table}
    nested, offset = 1, 0.0
    if headers.dtype(sizes) == torch.uint8:
        more = headers.needed(layer, "weight.nested_absmax", "weight.nested_quant_map")
        size, added = state.get("nested_blocksize", 256), state.get("nested_offset", 0.0)
        if not isinstance(size, int) or size < 1 or not isinstance(added, int | float):
            raise headers.damaged(layer, f"`{state_key}` tells no size of nested blocks")
        nested, offset = size, float(added)
        held["nested sizes"], held["nested table"] = more.values()
        headers.check(layer, held["nested sizes"], (math.ceil(blocks / nested),))
        headers.check(layer, held["nested table"], (256,))
        headers.check_floats(layer, *more.values())
    else:
        headers.check_floats(layer, sizes)
    return Blocks(
        *(key, sides, ending.rpartition("__")[2], held),
        block=block,
        nested=nested,
        offset=offset,
        dtype=getattr(torch, cast("str", dtype)),
        beside=(state_key,),
    )


@dataclass(frozen=True)
class Rows(Integers):
    """Integers of 8 bits times the largest number of their row over 127."""

    def decode(self, parts: Parts) -> Tensor:
        """The products; with the reciprocal of 127, as the program has it."""
        return super().decode(parts).mul_(STEP)

    def steps(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """The scales."""
        return super().steps(parts, values, start) * STEP


#: What a code stands for, in units of the largest number of its row: 1 / 127, rounded to float32.
STEP = 0.007874015718698502


def int8_rows(headers: Headers, layer: str) -> Rows:
    """A weight of `Linear8bitLt`.

    Raises:
        QuantisedError: Its scales are missing or of another shape, or it is laid out for a GPU.
    """
    parts = headers.needed(layer, "weight", "SCB")
    key, sizes = parts.values()
    headers.check_dtype(layer, key, torch.int8)
    shape = headers.shape(key)
    if len(shape) != 2:
        raise headers.damaged(layer, f"`{key}` has the shape {list(shape)}: no matrix")
    headers.check(layer, sizes, (shape[0],), (shape[0], 1))
    headers.check_floats(layer, sizes)
    formats = headers.held(layer, "weight_format")
    for told in formats:
        headers.check(layer, told, (), (1,))
        if int(headers.source.tensor(told).reshape(-1)[0]):
            raise headers.damaged(layer, f"`{told}` says that it is not stored row by row")
    return Rows(
        *(key, shape, "int8", {"codes": key, "scales": sizes}),
        padded=(shape[0], shape[1]),
        blocks=(shape[0], 1),
        beside=formats,
    )
