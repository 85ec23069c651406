"""The table of schemes: by how a companion of a weight is called, what makes the weight of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from ...source import TensorSource
from ..reading.gguf_file import GgufFile
from . import torchao
from .bitsandbytes import FP4, INT8, NF4, four_bits, int8_rows
from .comfy import ENDING, METADATA, comfy_quant, from_metadata
from .fp8 import scaled_fp8
from .gguf import gguf_weights
from .headers import Headers
from .nunchaku.layers import ENDING as OF_NUNCHAKU
from .nunchaku.layers import nunchaku
from .weight import Plain, QuantisedWeight

#: What the name of a companion ends in, after that of the layer, and what makes a weight of the layer;
#: the surest first.
SCHEMES: Mapping[str, Callable[[Headers, str], QuantisedWeight | Plain]] = {
    ENDING: comfy_quant,
    NF4: partial(four_bits, ending=NF4),
    FP4: partial(four_bits, ending=FP4),
    INT8: int8_rows,
    torchao.ENDING: torchao.torchao,
    "._weight_scale": torchao.torchao,  # whose codes are missing
    ".scale_weight": scaled_fp8,
    ".scale_weight_tensor": scaled_fp8,  # whose other scale is missing
    ".weight_scale": partial(scaled_fp8, scale="weight_scale"),
    ".weight_scale_inv": partial(scaled_fp8, scale="weight_scale_inv"),
}
#: A tensor that says only that a file has scaled weights.
MARKER = "scaled_fp8"

_ENDINGS = (*SCHEMES, OF_NUNCHAKU, MARKER)


def is_suspect(source: TensorSource) -> bool:
    """Whether any name is that of a companion: what can be told at once."""
    if isinstance(source, GgufFile) or METADATA in source.metadata:
        return True
    return any(key.endswith(_ENDINGS) for key in source.keys())  # noqa: SIM118


def quantised_weights(source: TensorSource) -> dict[str, QuantisedWeight | Plain]:
    """The weights of a file beside which scales are stored, by key; from headers and configurations.

    Raises:
        QuantisedError: A layer's tensors do not make a weight; names it and the reason.
    """
    if isinstance(source, GgufFile):
        return dict(gguf_weights(source))
    if not is_suspect(source):
        return {}
    headers = Headers(source)
    found = {one.layer: one for one in from_metadata(headers)}
    for ending, scheme in SCHEMES.items():
        for key in headers.keys:
            if key.endswith(ending) and (layer := key[: -len(ending)]) not in found:
                found[layer] = scheme(headers, layer)
    return {one.key: one for one in (*found.values(), *nunchaku(headers))}


def markers(source: TensorSource) -> list[str]:
    """Tensors that belong to no weight and say that there are scaled ones."""
    return [key for key in source.keys() if key.rpartition(".")[2] == MARKER]  # noqa: SIM118
