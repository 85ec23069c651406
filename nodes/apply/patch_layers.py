"""Layers as the host's adapter classes take them: under its names, in forms that it computes right.

Imports `lora_ops`: to be imported when a node runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...lora_ops import Layer, LoraLayer, LoraOpsError
from ...lora_ops.adapters.layers import (
    BoftLayer,
    DoraLayer,
    LokrLayer,
    PissaLayer,
    ReshapedLayer,
    fits,
    innermost,
    low_rank,
)

# What the host calls these roles, however the file spells them.
_SUFFIXES = {
    "up": ".lora_up.weight",
    "down": ".lora_down.weight",
    "diff": ".diff",
    "dora_scale": ".dora_scale",
}
# Roles whose tensor the host wants in the very shape of the weight.
_WHOLE = ("diff", "set_weight")
_CORES = {"mid", "t1", "t2"}


def why_not(layer: Layer, weight: Sequence[int]) -> str:
    """Return why the host could not apply a layer to a weight of this shape: it would only log it.

    Args:
        layer: As the file has it.
        weight: Shape of the weight, or of those of its rows that are meant.

    Returns:
        The reason, or nothing where it can.
    """
    try:
        if isinstance(layer, LoraLayer):  # first, as it is nearly always one
            pass
        elif isinstance(layer, ReshapedLayer):
            layer.padded(torch.empty(tuple(weight), device="meta"))
            return ""
        elif isinstance(layer, DoraLayer):
            layer.check_magnitudes(weight)
    except LoraOpsError as error:
        return str(error)
    if isinstance(innermost(layer), PissaLayer):
        return f"is of kind {layer.title}, which ComfyUI does not know; bake it instead"
    if fits(layer.shape, weight):
        return ""
    return f"changes a weight of shape {_times(layer.shape)}, this model's is {_times(weight)}"


def spelled(
    name: str, layer: Layer, keys: Mapping[str, str], weight: Sequence[int]
) -> dict[str, Tensor]:
    """Return the tensors of a layer as the host reads them.

    Args:
        name: The layer's name.
        layer: Of a kind that the host knows.
        keys: The file's key by role.
        weight: Shape of the weight, or of those of its rows that are meant.
    """
    found: dict[str, Tensor] = {}
    for role, tensor in _computable(layer, len(weight)).tensors().items():
        key = name + _SUFFIXES[role] if role in _SUFFIXES else keys[role]
        found[key] = tensor.reshape(tuple(weight)) if role in _WHOLE else tensor
    return found


def _computable(layer: Layer, axes: int) -> Layer:
    """The same layer in a form that the host computes right; see docs/kinds.md for what it does not.

    Args:
        layer: A layer of any kind.
        axes: Number of axes of the weight.
    """
    if isinstance(layer, LoraLayer) and (layer.mid is None or axes <= 4):
        return layer
    if isinstance(layer, ReshapedLayer):
        return replace(layer, inner=_computable(layer.inner, axes))
    if isinstance(layer, DoraLayer):
        return DoraLayer(_computable(layer.inner, axes), layer.magnitudes(axes))
    if isinstance(layer, BoftLayer) and layer.alpha is None:
        return replace(layer, alpha=0.0)
    if isinstance(layer, LokrLayer):
        fails = layer.t2 is not None or (layer.w2 is not None and axes > 4)
    else:
        fails = axes > 4 and not _CORES.isdisjoint(layer.tensors())
    if fails:
        return low_rank(*layer.factors(), layer.shape)
    return layer


def _times(shape: Sequence[int]) -> str:
    return "x".join("?" if size < 0 else str(size) for size in shape)
