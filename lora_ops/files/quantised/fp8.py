"""Float8 with scales: of a weight, of its rows, of blocks of a row, or of tiles.

`scale_weight` is the name of ComfyUI's first scaled files (with a marker, `scaled_fp8`) and of kohya's
trainers; `weight_scale` that of `comfy_quant`, of compressed tensors and others; `weight_scale_inv`,
DeepSeek's, multiplies like all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...source import storage_name
from ...spacing import spacing
from ..base import quote
from .headers import Headers
from .memory import PIECE
from .weight import Parts, Plain, Scaled

#: What belongs to a layer and scales its input.
INPUT_SCALES = ("input_scale", "scale_input")
_NAN, _NO_SECOND_SIGN = 0x7F, ~0x4000


@dataclass(frozen=True)
class ScaledFloat(Scaled):
    """Floats, each times a scale.

    Attributes:
        dtype: Of the codes.
        blocks: Blocks of rows and of columns that have a scale each.
    """

    dtype: torch.dtype
    blocks: tuple[int, int]

    def codes(self, parts: Parts) -> Tensor:
        """The codes."""
        return widened(parts["codes"]).reshape(self.padded)

    def scales(self, parts: Parts) -> Tensor:
        """The scales; kohya's newer files have one more of the whole weight."""
        scales = parts["scales"].float().reshape(self.blocks)
        return scales * parts["whole"].float().reshape(1, 1) if "whole" in parts else scales

    def gaps(self, numbers: Tensor) -> Tensor:
        """The unit in the last place."""
        return spacing(numbers, self.dtype)


def widened(codes: Tensor) -> Tensor:
    """Fresh float32 of codes, as `codes.float()` has it; of float8 in half the time.

    The bits of an e4m3 number, moved to where float16 has its exponent, are that number over 256; only NaN is
    not.
    """
    found = torch.empty(codes.shape, dtype=torch.float32)
    if codes.dtype != torch.float8_e4m3fn or not codes.numel() or not codes.is_contiguous():
        return found.copy_(codes)
    bits = codes.view(torch.int8).view(-1)
    for part, out in zip(bits.split(PIECE), found.view(-1).split(PIECE), strict=True):
        if int(part.bitwise_and(_NAN).amax()) == _NAN:
            return found.copy_(codes)
        moved = part.to(torch.int16).bitwise_left_shift_(7).bitwise_and_(_NO_SECOND_SIGN)
        out.copy_(moved.view(torch.float16)).mul_(256)
    return found


def float8() -> tuple[torch.dtype, torch.dtype]:
    """The dtypes of codes."""
    return torch.float8_e4m3fn, torch.float8_e5m2


def scaled_fp8(headers: Headers, layer: str, scale: str = "scale_weight") -> ScaledFloat | Plain:
    """A weight and its `scale_weight`, or another name for it.

    Raises:
        QuantisedError: They do not fit, or the weight is no float.
    """
    parts = headers.needed(layer, "weight", scale)
    key, scales = parts["weight"], parts[scale]
    shape, dtype = headers.shape(key), headers.dtype(key)
    beside = headers.held(layer, *INPUT_SCALES)
    whole = headers.held(layer, "scale_weight_tensor")
    # Beside numbers that are no float8, a scale of 1 stands for nothing.
    plain = dtype in (torch.float32, torch.float16, torch.bfloat16)
    if plain and math.prod(headers.shape(scales)) == 1:
        if float(headers.source.tensor(scales).float()) == 1:
            return Plain(key, (scales, *beside))
        raise headers.damaged(
            layer, f"{quote(key)} is stored plainly, but {quote(scales)} is not 1"
        )
    headers.check_dtype(layer, key, *float8())
    held = {"codes": key, "scales": scales, **({"whole": whole[0]} if whole else {})}
    for one in whole:
        headers.check(layer, one, (), (1,), (1, 1))
        headers.check_floats(layer, one)
    blocks = headers.blocks(layer, scales, shape)
    return ScaledFloat(
        *(key, shape, f"{storage_name(dtype)}, scaled", held),
        padded=(math.prod(shape[:-1]), shape[-1] if shape else 1),
        dtype=dtype,
        blocks=blocks,
        beside=beside,
    )
