"""Encoding a weight into the very storage that a file has it in, for new numbers in an old place."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..base import FileSource
from . import bitsandbytes, blocks, encoding_blocks, torchao
from .encoding import Encoder, RotatedRows, Rows, ScaledFloat, ScaledInteger
from .encoding_four import FourBits
from .encoding_others import RoundedFloat, RoundedInteger, SizedRows
from .fp8 import ScaledFloat as StoredFloat
from .integers import Integers
from .weight import QuantisedWeight, Scaled

#: What a weight's parts are for, by the names that encoders give them.
ROLES = {
    "weight_scale": "scales",
    "weight_scale_2": "whole",
    "scale_weight": "scales",
    "SCB": "scales",
    "weight.absmax": "sizes",
    "weight.quant_map": "table",
}


def encoder_like(weight: QuantisedWeight, file: FileSource) -> Encoder | None:
    """Return what encodes a weight as it is stored; None where that is only read.

    Args:
        weight: As the file has it.
        file: Which, as it is stored.
    """
    if isinstance(weight, bitsandbytes.Blocks):
        return _four_bits(weight, file)
    if isinstance(weight, torchao.Affine):
        return _of_torchao(weight, file)
    if not isinstance(weight, Scaled) or len(weight.shape) < 2 or set(weight.parts) - _WRITTEN:
        return None
    key, shape = weight.key, (weight.shape[0], math.prod(weight.shape[1:]))
    codes, scales = (file.dtype(weight.parts[role]) for role in ("codes", "scales"))
    if isinstance(weight, blocks.Nvfp4 | blocks.Mxfp8):
        if weight.padded != shape:
            return None
        four = isinstance(weight, blocks.Nvfp4)
        return (encoding_blocks.Nvfp4 if four else encoding_blocks.Mxfp8)(key, shape, codes)
    if "whole" in weight.parts:  # kohya's scale of scales
        return None
    if isinstance(weight, StoredFloat) and _by_rows(weight):
        return ScaledFloat(key, shape, codes, weight.blocks, scales)
    if isinstance(weight, bitsandbytes.Rows):
        return SizedRows(key, shape, codes) if scales == torch.float32 else None
    if type(weight) is not Integers or weight.packed or not _by_rows(weight):
        return None
    if weight.blocks != (shape[0], 1):
        return None if weight.rotated else ScaledInteger(key, shape, codes, weight.blocks, scales)
    if scales != torch.float32:
        return None
    if weight.rotated:
        return RotatedRows(key, shape, codes, weight.rotated) if len(weight.shape) == 2 else None
    return Rows(key, shape, codes)


def _four_bits(weight: bitsandbytes.Blocks, file: FileSource) -> Encoder | None:
    shape = (weight.shape[0], math.prod(weight.shape[1:]))
    if (
        set(weight.parts) != {"codes", "sizes", "table"}
        or shape[1] % weight.block
        or weight.block % 2
    ):
        return None
    codes = file.dtype(weight.parts["codes"])
    if codes != torch.uint8 or file.dtype(weight.parts["sizes"]) != torch.float32:
        return None
    return FourBits(weight.key, shape, codes, weight.storage, weight.block, weight.dtype)


def _of_torchao(weight: torchao.Affine, file: FileSource) -> Encoder | None:
    zero = weight.parts.get("zero")
    if zero is not None and bool(file.tensor(zero).any()):
        return None
    codes, scales = (file.dtype(weight.parts[role]) for role in ("codes", "scales"))
    if not scales.is_floating_point or codes == torch.uint8:
        return None
    shape = (weight.shape[0], weight.shape[1])
    if codes.is_floating_point:
        return RoundedFloat(weight.key, shape, codes, weight.blocks, scales, weight.dtype)
    return RoundedInteger(
        *(weight.key, shape, codes, weight.blocks, scales, weight.dtype, weight.limits)
    )


_WRITTEN = {"codes", *ROLES.values()}


def _by_rows(weight: StoredFloat | Integers) -> bool:
    """Whether blocks are of whole rows of the weight as a matrix of its first axis and all others."""
    return len(weight.shape) == 2 or weight.blocks in ((1, 1), (weight.shape[0], 1))


def parts_like(
    weight: QuantisedWeight, file: FileSource, encoder: Encoder
) -> Iterator[tuple[str, Tensor]]:
    """Yield the scales of a weight that was encoded, as the file has its own: names, dtypes, shapes.

    Args:
        weight: As the file has it.
        file: Which, as it is stored.
        encoder: From `encoder_like`, once all of the weight is encoded.
    """
    for name, part in encoder.parts().items():
        key = weight.parts[ROLES[name]]
        dtype = file.dtype(key)
        is_bits = part.dtype.itemsize == dtype.itemsize == 1  # of exponents, or of float8
        yield key, (part.view(dtype) if is_bits else part.to(dtype)).reshape(file.shape(key))
