"""Recognising weights stored with scales, which read plainly would be wrong numbers.

Sources of the names: ComfyUI (scaled fp8, `comfy_quant`, `_quantization_metadata`), compressed
tensors (`weight_scale`), bitsandbytes, GPTQ and AWQ (`qweight`), Nunchaku (`wscales`), HQQ
(`W_q`), Quanto (`_data`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import cast

from ...errors import QuantisedError
from ...source import TensorSource
from ..base import quote
from .comfy import METADATA
from .schemes import quantised_weights
from .source import QuantisedSource

# Scheme and what its keys look like, surest first. The group is the layer; a marker has none.
_SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (scheme, re.compile(pattern))
    for scheme, pattern in (
        ("bitsandbytes nf4", r"(.+)\.weight\.quant_state\.bitsandbytes__nf4"),
        ("bitsandbytes fp4", r"(.+)\.weight\.quant_state\.bitsandbytes__fp4"),
        (
            "bitsandbytes",
            r"(.+)\.weight\.(?:absmax|quant_map|nested_absmax)|(.+)\.(?:SCB|weight_format)",
        ),
        ("comfy_quant", r"(.+)\.comfy_quant"),
        ("scaled fp8", r"(.+)\.scale_weight(?:_tensor)?|(?:.+\.)?scaled_fp8"),
        ("weight_scale", r"(.+)\.(?:weight_scale(?:_2|_inv)?|weight_s_rel|weight_s_channel)"),
        ("torchao", r"(.+)\._weight_(?:qdata|scale)"),
        ("GPTQ or AWQ", r"(.+)\.(?:qzeros|g_idx)"),
        ("SVDQuant", r"(.+)\.wscales"),
        ("HQQ", r"(.+)\.W_q"),
        ("Quanto", r"(.+)\.weight\._(?:data|scale)"),
        ("packed integers", r"(.+)\.qweight"),
    )
)

# Scheme by the stored dtype of a matrix that is called a weight ...
_PACKED = dict.fromkeys(("I8", "U8", "I16", "U16", "I32", "U32"), "packed integers")
# ... and of any tensor: nothing but scaled storage uses elements so narrow.
_NARROW = {"F4": "4-bit floats", "F6_E2M3": "6-bit floats", "F6_E3M2": "6-bit floats"}


def quantisation(source: TensorSource) -> str | None:
    """The name of the scheme in which numbers are stored with scales, None for plain numbers.

    Plain fp8 without scales is plain. Reads names, dtypes and metadata only.
    """
    return next((scheme for scheme, _, _ in _signs(source)), None)


def refuse_quantised(source: TensorSource) -> None:
    """Let plain numbers pass, also those of a file that is decoded as it is read.

    Raises:
        QuantisedError: numbers are stored with scales that are not read; names the scheme, how many
            layers, an example, and what is wrong with it if it is of a scheme that is read.
    """
    if isinstance(source, QuantisedSource):
        source.check()
    scheme = quantisation(source)
    if scheme is None:
        return
    found = [(layer, key) for name, layer, key in _signs(source) if name == scheme]
    layers = {layer for layer, _ in found if layer is not None}
    count = f" in {len(layers)} layer{'s' * (len(layers) != 1)}" if layers else ""
    why = ""
    try:
        quantised_weights(source)
    except QuantisedError as error:
        why = f", and {error.args[0]}"
    raise QuantisedError(
        f"the weights are quantised ({scheme}{count}, see {quote(found[0][1])}){why}; "
        "give the unquantised (fp16/bf16/fp32) checkpoint",
        path=source.name,
    )


def _signs(source: TensorSource) -> Iterator[tuple[str, str | None, str]]:
    """(scheme, layer or None, key) of every sign, the surest scheme first."""
    keys = source.keys()
    for scheme, pattern in _SIGNS:
        for key in keys:
            if match := pattern.fullmatch(key):
                yield scheme, match[match.lastindex] if match.lastindex else None, key
    if METADATA in source.metadata:
        layers: list[str | None] = [*_metadata_layers(source.metadata[METADATA])]
        for layer in layers or [None]:
            yield "comfy_quant", layer, METADATA
    for key in keys:
        name = source.element(key).name
        layer = key.removesuffix(".weight")
        if name in _NARROW:
            yield _NARROW[name], layer, key
        elif name in _PACKED and layer != key and len(source.shape(key)) >= 2:
            yield _PACKED[name], layer, key


def _metadata_layers(text: str) -> list[str]:
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError):
        return []
    fields = cast("dict[str, object]", document) if isinstance(document, dict) else {}
    layers = fields.get("layers")
    return list(cast("dict[str, object]", layers)) if isinstance(layers, dict) else []
