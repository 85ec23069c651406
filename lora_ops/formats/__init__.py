"""How adapter files name their tensors: kohya, comfy, peft and diffusers. No mathematics here."""

from __future__ import annotations

from .decode import decode, detect, read_alpha, read_layer
from .encode import encode_full, encode_layer, module_keys
from .joining import Respell, format_of, join_key, join_keys, respeller
from .names import Namer, component, flattened, module_namer, resolve
from .peft_config import PEFT_METADATA, configured_scales, peft_scales, with_unit_scales
from .suffixes import BIAS, Module, Modules, modules
from .table import (
    COMFY,
    DIFFUSERS,
    FORMATS,
    KOHYA,
    PEFT,
    Format,
    can_hold_full,
    format_named,
    writable,
)

__all__ = [
    "BIAS",
    "COMFY",
    "DIFFUSERS",
    "FORMATS",
    "KOHYA",
    "PEFT",
    "PEFT_METADATA",
    "Format",
    "Module",
    "Modules",
    "Namer",
    "Respell",
    "can_hold_full",
    "component",
    "configured_scales",
    "decode",
    "detect",
    "encode_full",
    "encode_layer",
    "flattened",
    "format_named",
    "format_of",
    "join_key",
    "join_keys",
    "module_keys",
    "module_namer",
    "modules",
    "peft_scales",
    "read_alpha",
    "read_layer",
    "resolve",
    "respeller",
    "with_unit_scales",
    "writable",
]
