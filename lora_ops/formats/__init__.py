"""How adapter files name their tensors: kohya, comfy, peft and diffusers. No mathematics here."""

from __future__ import annotations

from .decode import decode, detect, read_alpha, read_layer
from .encode import encode_full, encode_layer
from .names import Namer, component, flattened, module_namer, resolve
from .suffixes import Module, Modules, modules
from .table import COMFY, DIFFUSERS, FORMATS, KOHYA, PEFT, Format, can_hold_full, writable

__all__ = [
    "COMFY",
    "DIFFUSERS",
    "FORMATS",
    "KOHYA",
    "PEFT",
    "Format",
    "Module",
    "Modules",
    "Namer",
    "can_hold_full",
    "component",
    "decode",
    "detect",
    "encode_full",
    "encode_layer",
    "flattened",
    "module_namer",
    "modules",
    "read_alpha",
    "read_layer",
    "resolve",
    "writable",
]
