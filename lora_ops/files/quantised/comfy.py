"""`comfy_quant`: a configuration a layer, as a tensor of JSON or all of them in the file's metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import cast

import torch

from ..base import quote
from .blocks import mxfp8, nvfp4
from .fp8 import INPUT_SCALES, scaled_fp8
from .headers import Headers
from .integers import int8, w4a4, w4a8
from .weight import Plain, QuantisedWeight

#: What ends the name of a layer's configuration.
ENDING = ".comfy_quant"
#: Under which a file's metadata has all configurations.
METADATA = "_quantization_metadata"

Settings = dict[str, object]
# What tables of vectors are called: `shared`, `embed_tokens`, `token_embedding`.
_TABLE = re.compile(r"(?:^|\.)(?:shared|wte|[^.]*emb[^.]*)$")


def _float8(
    headers: Headers, layer: str, settings: Settings, title: str
) -> QuantisedWeight | Plain:
    for key in headers.held(layer, "weight"):
        headers.check_dtype(layer, key, getattr(torch, title))
    # The scale of a table of vectors is 1 where there is none; a linear layer does not load then.
    is_table = _TABLE.search(layer) is not None
    if is_table and not headers.held(layer, "weight_scale") and headers.held(layer, "weight"):
        return Plain(f"{layer}.weight", headers.held(layer, *INPUT_SCALES))
    return scaled_fp8(headers, layer, "weight_scale")


_E4M3, _E5M2 = (partial(_float8, title=title) for title in ("float8_e4m3fn", "float8_e5m2"))
#: By the format's name in a configuration. Those by rows and by tiles are other people's; ComfyUI itself
#: does not load them.
FORMATS: Mapping[str, Callable[[Headers, str, Settings], QuantisedWeight | Plain]] = {
    "float8_e4m3fn": _E4M3,
    "float8_e5m2": _E5M2,
    "float8_e4m3fn_rowwise": _E4M3,
    "float8_e4m3fn_blockwise": _E4M3,
    "mxfp8": mxfp8,
    "hybrid_mxfp8": mxfp8,
    "nvfp4": nvfp4,
    "int8_tensorwise": int8,
    "int8_blockwise": int8,
    "convrot_w4a4": w4a4,
    "asym_w4a8_int8": w4a8,
}


def comfy_quant(headers: Headers, layer: str) -> QuantisedWeight | Plain:
    """The weight of a layer with a configuration of its own.

    Raises:
        QuantisedError: The configuration is none, its format is not known, or its tensors do not fit.
    """
    key = layer + ENDING
    found = _configured(headers, layer, headers.settings(layer, key), key)
    return replace(found, beside=(key, *found.beside))


def from_metadata(headers: Headers) -> Iterator[QuantisedWeight | Plain]:
    """The weights of all layers that the file's metadata configures.

    Raises:
        QuantisedError: See `comfy_quant`.
    """
    text = headers.metadata.get(METADATA)
    if text is None:
        return
    layers = headers.parsed("", text, METADATA).get("layers")
    if not isinstance(layers, dict):
        raise headers.damaged("", f"{quote(METADATA)} has no `layers`")
    for layer, settings in cast("dict[str, object]", layers).items():
        if f"{layer}.weight" not in headers:
            continue  # a part of a model has the configuration of all of it
        if not isinstance(settings, dict):
            raise headers.damaged(layer, f"{quote(METADATA)} has no settings for it")
        found = _configured(headers, layer, cast("Settings", settings), METADATA)
        yield replace(found, beside=(*headers.held(layer, ENDING[1:]), *found.beside))


def configurations(metadata: Mapping[str, str], layers: Iterable[str]) -> dict[str, str]:
    """The entry of a file's metadata that configures some of its layers; none where it has none.

    Args:
        metadata: Of the file, from which its weights were read.
        layers: Which.
    """
    if METADATA not in metadata:
        return {}
    told = cast("Settings", json.loads(metadata[METADATA]))
    held = cast("Settings", told["layers"])
    found = {layer: held[layer] for layer in layers if layer in held}
    return {METADATA: json.dumps({**told, "layers": found})} if found else {}


def _configured(
    headers: Headers, layer: str, settings: Settings, where: str
) -> QuantisedWeight | Plain:
    name = settings.get("format")
    if not isinstance(name, str) or name not in FORMATS:
        raise headers.damaged(
            layer, f"{quote(where)} names the format {name!r}, which is not known"
        )
    return FORMATS[name](headers, layer, settings)
