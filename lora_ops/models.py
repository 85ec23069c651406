"""Which model an adapter is for, told by its names."""

from __future__ import annotations

from .adapter import Adapter
from .architectures import Architecture, detect_targets
from .formats import flattened

# Flattened names of the keys and values of a cross-attention end so.
CROSS_ATTENTION = ("attn2_to_k", "attn2_to_v", "attn2_processor_to_k", "attn2_processor_to_v")


def models_of(adapter: Adapter) -> tuple[Architecture, ...]:
    """The architectures that an adapter can be for, the likeliest first; from its names."""
    return detect_targets(map(flattened, adapter.layers), _width(adapter))


def _width(adapter: Adapter) -> int | None:
    """Input features of a cross-attention's keys: what tells Stable Diffusion 1, 2 and XL apart."""
    for target in adapter.layers:
        if flattened(target).endswith(CROSS_ATTENTION):
            shape = adapter.layers[target].shape
            if len(shape) > 1 and shape[1] > 0:  # -1 of a kind that takes any number of inputs
                return shape[1]
    return None
