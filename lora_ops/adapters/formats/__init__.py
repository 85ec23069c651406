"""How adapter files name their tensors: kohya, comfy, peft and diffusers. No mathematics here."""

from __future__ import annotations

from ..naming.joining import PROCESSORS, Respell, format_of, respeller, spelling_key, spelling_keys
from ..naming.model_names import ModelNames, model_names
from ..naming.names import Namer, component, flat_name, module_namer, resolve
from ..naming.suffixes import BIAS, CONTROL_MARK, Module, Modules, is_turned, modules
from ..naming.table import (
    COMFY,
    CONTROL,
    DIFFUSERS,
    FORMATS,
    KOHYA,
    PEFT,
    Format,
    format_named,
    writable,
)
from ..peft.apart import apart_or_whole, experts_apart
from ..peft.config import (
    PEFT_CONFIG,
    PEFT_METADATA,
    Configured,
    configuration_notes,
    configured,
    peft_scales,
    special,
)
from ..peft.saved import saved_parameters
from ..peft.written import Written, adapter_config, with_unit_scales
from .decode import commonest, decode, detect, settings_of
from .encode import as_stored, encode_full, encode_layer, module_keys, table_keys
from .headers import Told, told, told_of
from .kinds import (
    KINDS,
    MAGNITUDES,
    VERA_SHARED,
    Kind,
    bias_of,
    inner_size,
    kind_of,
    read_alpha,
    read_configured,
    read_kind,
    title_of,
)
from .recognise import Mark, foreign_method, recognise

__all__ = [
    "BIAS",
    "COMFY",
    "CONTROL",
    "CONTROL_MARK",
    "DIFFUSERS",
    "FORMATS",
    "KINDS",
    "KOHYA",
    "MAGNITUDES",
    "PEFT",
    "PEFT_CONFIG",
    "PEFT_METADATA",
    "PROCESSORS",
    "VERA_SHARED",
    "Configured",
    "Format",
    "Kind",
    "Mark",
    "ModelNames",
    "Module",
    "Modules",
    "Namer",
    "Respell",
    "Told",
    "Written",
    "adapter_config",
    "apart_or_whole",
    "as_stored",
    "bias_of",
    "commonest",
    "component",
    "configuration_notes",
    "configured",
    "decode",
    "detect",
    "encode_full",
    "encode_layer",
    "experts_apart",
    "flat_name",
    "foreign_method",
    "format_named",
    "format_of",
    "inner_size",
    "is_turned",
    "kind_of",
    "model_names",
    "module_keys",
    "module_namer",
    "modules",
    "peft_scales",
    "read_alpha",
    "read_configured",
    "read_kind",
    "recognise",
    "resolve",
    "respeller",
    "saved_parameters",
    "settings_of",
    "special",
    "spelling_key",
    "spelling_keys",
    "table_keys",
    "title_of",
    "told",
    "told_of",
    "with_unit_scales",
    "writable",
]
