"""What the change of one weight can be: one frozen dataclass a kind, all with the face of `AnyLayer`."""

from __future__ import annotations

from typing import TypeAlias

from .boft import BoftLayer
from .dora import DoraLayer
from .full import FullLayer
from .glora import GloraLayer
from .ia3 import Ia3Layer
from .layer import Convention, fits
from .layer import Layer as AnyLayer
from .loha import LohaLayer
from .lokr import LokrLayer
from .lora import LoraLayer, low_rank
from .oft import OftLayer
from .replacement import ReplacementLayer
from .reshaped import ReshapedLayer

# Those that the operations treat today, and that `formats.decode` therefore hands out.
Layer: TypeAlias = LoraLayer | FullLayer

__all__ = [
    "AnyLayer",
    "BoftLayer",
    "Convention",
    "DoraLayer",
    "FullLayer",
    "GloraLayer",
    "Ia3Layer",
    "Layer",
    "LohaLayer",
    "LokrLayer",
    "LoraLayer",
    "OftLayer",
    "ReplacementLayer",
    "ReshapedLayer",
    "fits",
    "low_rank",
]
