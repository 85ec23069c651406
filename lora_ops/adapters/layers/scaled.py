"""A strength written into a layer: into its alpha where it has one, else into its numbers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...errors import NonFiniteError
from ...linalg.storage import loadable, rounded
from .full import FullLayer
from .glora import GloraLayer
from .ia3 import Ia3Layer
from .layer import Layer
from .loha import LohaLayer
from .lokr import LokrLayer
from .lora import LoraLayer
from .reshaped import ReshapedLayer, rewrapped


def multiplied(target: str, layer: Layer, strength: float, has_alpha: bool) -> Layer:
    """Return a layer with a strength in its alpha; where it has none, in the numbers themselves.

    Args:
        target: Its name, for messages.
        layer: LoRA, LoHa, LoKr, GLoRA, IA3 or a full difference.
        strength: Any but 0.
        has_alpha: Whether the file has a place for the alpha of a LoRA.

    Raises:
        NonFiniteError: A number is then out of the range of what stores it.
    """
    if isinstance(layer, ReshapedLayer):
        return rewrapped(multiplied(target, layer.inner, strength, has_alpha), layer)
    if isinstance(layer, LoraLayer) and not has_alpha:
        return folded(target, layer, strength)
    if strength == 1:
        return layer
    if isinstance(layer, LoraLayer | LohaLayer | LokrLayer | GloraLayer):
        rank = layer.factor_rank
        if rank is not None:
            return replace(layer, alpha=_alpha(target, layer.alpha, rank, strength))
    if isinstance(layer, FullLayer):
        return FullLayer(_times(target, layer.diff, strength))
    if isinstance(layer, Ia3Layer):
        return replace(layer, weight=_times(target, layer.weight, strength))
    if isinstance(layer, LokrLayer) and layer.w1 is not None:
        return replace(layer, w1=_times(target, layer.w1, strength))
    return layer


def _alpha(target: str, alpha: float | None, rank: int, strength: float) -> float:
    """The stored alpha that multiplies a layer's change by a strength.

    Raises:
        NonFiniteError: It does not fit what holds it.
    """
    result = (rank if alpha is None else alpha) * strength
    if abs(result) > torch.finfo(torch.float32).max:
        raise NonFiniteError(
            f"layer `{target}`: an alpha of {result:.3g} does not fit float32, in which files "
            "hold it; give a smaller strength",
            target=target,
        )
    return result


def _times(target: str, tensor: Tensor, strength: float) -> Tensor:
    return rounded(tensor.double() * strength, loadable(tensor.dtype), target)


def folded(target: str, layer: LoraLayer, strength: float = 1.0) -> LoraLayer:
    """Return a layer with its whole scale in up, where the file has no place for an alpha.

    Args:
        target: Its name, for messages.
        layer: Not written into.
        strength: What its change is multiplied by besides.

    Raises:
        NonFiniteError: A number is then out of the range of what stores it.
    """
    factor, dtype = layer.scale * strength, loadable(layer.dtype)
    if factor == 1:
        return replace(layer, alpha=None)
    up = rounded(layer.up.double() * factor, dtype, target)
    return replace(layer, up=up, down=layer.down.to(dtype), alpha=None)


def stored_change(layer: Layer) -> Tensor:
    """The change, float64; of kinds that need the base weight, the stored numbers, scaled."""
    if not layer.needs_base:
        return layer.delta(torch.float64)
    tensors = [one for role, one in layer.tensors().items() if role not in ("alpha", "on_input")]
    return torch.cat([one.double().flatten() for one in tensors]) * layer.scale
