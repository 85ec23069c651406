"""The ways in which weights can be written: ComfyUI's `comfy_quant`, a configuration a layer; and older ones."""

from __future__ import annotations

from collections.abc import Mapping

from .encoding import Rows, ScaledFloat
from .encoding_blocks import Mxfp8, Nvfp4
from .encoding_four import BLOCK, FourBits, FourBitScheme
from .encoding_legacy import LegacyFloat, LegacyScheme
from .encoding_plain import PlainFloat, PlainScheme
from .scheme import Scheme

#: By the name that users give it.
SCHEMES: Mapping[str, Scheme] = {
    "fp8_scaled": Scheme("fp8 e4m3, scaled", "float8_e4m3fn", "float8_e4m3fn", ScaledFloat),
    "fp8_e5m2_scaled": Scheme("fp8 e5m2, scaled", "float8_e5m2", "float8_e5m2", ScaledFloat),
    "int8": Scheme("int8", "int8_tensorwise", "int8", Rows),
    "mxfp8": Scheme("mxfp8", "mxfp8", "float8_e4m3fn", Mxfp8, multiple=32),
    "nvfp4": Scheme("nvfp4", "nvfp4", "uint8", Nvfp4, multiple=16, packed=2),
    "fp8_legacy": LegacyScheme("fp8 e4m3, scaled", "float8_e4m3fn", "float8_e4m3fn", LegacyFloat),
    "fp8": PlainScheme("fp8 e4m3", "", "float8_e4m3fn", PlainFloat),
    "nf4": FourBitScheme("nf4", "", "uint8", FourBits, multiple=BLOCK),
    "fp4": FourBitScheme("fp4", "", "uint8", FourBits, multiple=BLOCK),
}
