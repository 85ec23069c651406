"""torchao: integers or float8, less a zero point, times the scale of a block of a row.

A weight is several tensors, `_weight_qdata` and others; the file's metadata describes each by its name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ...spacing import spacing
from .fp8 import float8, widened
from .headers import Headers
from .memory import rounded
from .weight import Parts, Scaled

#: What ends the name of a weight's codes, after that of the layer.
ENDING = "._weight_qdata"
#: Under which the file's metadata lists what it describes.
NAMES = "tensor_names"

_KINDS = {"Int8Tensor": "int8", "IntxUnpackedToInt8Tensor": "int", "Float8Tensor": "fp8"}
_RESULTS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Affine(Scaled):
    """Codes less a zero point, times a scale, of blocks.

    Attributes:
        blocks: Blocks of rows and of columns.
        codes_dtype: Of the codes.
        dtype: What the program rounds the numbers to.
        limits: The least and the largest code, of integers.
    """

    blocks: tuple[int, int]
    codes_dtype: torch.dtype
    dtype: torch.dtype
    limits: tuple[int, int] = (-128, 127)

    def codes(self, parts: Parts) -> Tensor:
        """The codes, less the zero point."""
        codes = widened(parts["codes"])
        if "zero" not in parts:
            return codes
        (rows, columns), (high, wide) = self.padded, self.blocks
        zeros = parts["zero"].float().reshape(high, 1, wide, 1)
        codes.view(high, rows // high, wide, columns // wide).sub_(zeros)
        return codes

    def scales(self, parts: Parts) -> Tensor:
        """The scales."""
        return parts["scales"].float().reshape(self.blocks)

    def gaps(self, numbers: Tensor) -> Tensor:
        """1, or the unit in the last place."""
        return spacing(numbers, self.codes_dtype)

    def decode(self, parts: Parts) -> Tensor:
        """The products, rounded as the program rounds them."""
        return rounded(super().decode(parts), self.dtype)

    def reach(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """That, and the rounding of the numbers."""
        return super().reach(parts, values, start) + spacing(values, self.dtype)


def torchao(headers: Headers, layer: str) -> Affine:
    """A weight of torchao's tensors.

    Raises:
        QuantisedError: They are of another kind, not described, or of shapes that do not fit.
    """
    name = f"{layer}.weight"
    told = headers.metadata.get(name)
    if told is None:
        raise headers.damaged(layer, f"the metadata does not describe `{name}`")
    about = headers.parsed(layer, told, name)
    kind, data = about.get("_type"), about.get("_data")
    settings = cast("dict[str, object]", data) if isinstance(data, dict) else {}
    dtype = settings.get("dtype")
    result = cast("dict[str, object]", dtype).get("_data") if isinstance(dtype, dict) else None
    if kind not in _KINDS or result not in _RESULTS:
        raise headers.damaged(layer, f"it is torchao's {kind!r} of {result!r}, which is not read")
    parts = headers.needed(layer, "_weight_qdata", "_weight_scale")
    key, scales = parts.values()
    headers.check_dtype(layer, key, torch.int8, torch.uint8, *float8())
    shape, dtype = headers.shape(key), headers.dtype(key)
    if len(shape) != 2:
        raise headers.damaged(layer, f"`{key}` has the shape {list(shape)}: no matrix")
    blocks = headers.blocks(layer, scales, shape)
    held = {"codes": key, "scales": scales}
    for zero in headers.held(layer, "_weight_zero_point"):
        if math.prod(headers.shape(zero)) != math.prod(blocks):
            raise headers.damaged(layer, f"`{zero}` has the shape {list(headers.shape(zero))}")
        held["zero"] = zero
    return Affine(
        *(name, shape, f"{_KINDS[cast('str', kind)]} of torchao", held),
        padded=(shape[0], shape[1]),
        blocks=blocks,
        codes_dtype=dtype,
        dtype=getattr(torch, cast("str", result)),
        limits=_limits(settings.get("target_dtype")),
    )


def _limits(told: object) -> tuple[int, int]:
    """The range of integers of so many bits: of 8, where nothing is told."""
    name = cast("dict[str, object]", told).get("_data") if isinstance(told, dict) else None
    found = re.fullmatch(r"int([1-8])", name) if isinstance(name, str) else None
    half = 1 << (int(found[1]) - 1 if found else 7)
    return -half, half - 1


def described(metadata: Mapping[str, str]) -> set[str]:
    """The entries of a file's metadata that describe its tensors."""
    try:
        names: object = json.loads(metadata.get(NAMES, ""))
    except (ValueError, RecursionError):
        return set()
    listed = cast("list[object]", names) if isinstance(names, list) else []
    return {NAMES, *(name for name in listed if isinstance(name, str))}


def descriptions(metadata: Mapping[str, str], layers: Iterable[str]) -> dict[str, str]:
    """What describes a file of which some layers are still stored as they are; nothing where none is.

    Args:
        metadata: Of the file.
        layers: Those; all other weights are plain tensors.
    """
    names, kept = described(metadata), {f"{layer}.weight" for layer in layers}
    if not names & kept:
        return {}
    plain = json.dumps({"_type": "Tensor"})
    return {n: t if n == NAMES or n in kept else plain for n, t in metadata.items() if n in names}
