"""What the change of one weight can be: one frozen dataclass a kind, all with the face of `Layer`."""

from __future__ import annotations

from .adalora import AdaLoraLayer
from .boft import BoftLayer
from .dora import BasedDoraLayer, DoraLayer
from .families import KroneckerProduct, Scaled
from .full import FullLayer
from .glora import GloraLayer
from .ia3 import GAINS_OF_WHAT, BiasGainsLayer, Ia3Layer, PeftIa3Layer
from .input_butterfly import InputButterflyLayer
from .input_rotation import InputRotationLayer
from .layer import Convention, Layer, fits
from .loha import LohaLayer
from .lokr import LokrLayer
from .lora import LoraLayer, low_rank
from .made import MadeLayer
from .oft import OftLayer
from .pissa import Initial, PissaLayer
from .replacement import NewRowsLayer, ReplacementLayer
from .reshaped import ReshapedLayer, rewrapped, unpadded
from .vera import VeraLayer


def innermost(layer: Layer) -> Layer:
    """Return the layer that magnitudes or a larger shape are put around, or the layer itself."""
    while isinstance(layer, DoraLayer | ReshapedLayer):
        layer = layer.inner
    return layer


def stored_alpha(layer: Layer) -> float | None:
    """Return the alpha that a layer's scale is made of; None where none is stored."""
    return innermost(layer).stored_alpha


__all__ = [
    "GAINS_OF_WHAT",
    "AdaLoraLayer",
    "BasedDoraLayer",
    "BiasGainsLayer",
    "BoftLayer",
    "Convention",
    "DoraLayer",
    "FullLayer",
    "GloraLayer",
    "Ia3Layer",
    "Initial",
    "InputButterflyLayer",
    "InputRotationLayer",
    "KroneckerProduct",
    "Layer",
    "LohaLayer",
    "LokrLayer",
    "LoraLayer",
    "MadeLayer",
    "NewRowsLayer",
    "OftLayer",
    "PeftIa3Layer",
    "PissaLayer",
    "ReplacementLayer",
    "ReshapedLayer",
    "Scaled",
    "VeraLayer",
    "fits",
    "innermost",
    "low_rank",
    "rewrapped",
    "stored_alpha",
    "unpadded",
]
