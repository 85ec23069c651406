"""Store the frozen weights of a model narrow, before adapters are injected beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from ..errors import ArgumentError, UnsupportedLayerError
from .adapted import Adapted
from .stored import STORES
from .targets import chosen


def store_frozen(
    module: nn.Module, targets: str | Sequence[str] = "all", *, store: str = "nf4"
) -> int:
    """Replace linear layers by frozen ones in 4 or 8 bits, in place, for good.

    Adapters that are injected afterwards train beside them in full precision; what they learn is
    collected and baked into the checkpoint that the weights came from.

    Args:
        module: The model.
        targets: As in `inject`; of what they mean, the linear layers.
        store: `nf4`, 0.52 bytes a number; or `int8`, 1 byte.

    Returns:
        How many layers were replaced.

    Raises:
        ArgumentError: No such store, or no linear layer is meant.
        UnsupportedLayerError: A layer carries an adapter already.
    """
    if store not in STORES:
        raise ArgumentError(f"unknown store `{store}`; it is one of {', '.join(STORES)}")
    linears = {
        name: one
        for name, one in chosen(module, targets).items()
        if isinstance(one, nn.Linear) and one.weight.is_floating_point()
    }
    if not linears:
        raise ArgumentError(f"`{targets}` means no linear layer; only these are stored in {store}")
    for name, layer in linears.items():
        if isinstance(layer, Adapted):
            raise UnsupportedLayerError(
                f"`{name}` carries an adapter: store the weights first, then inject", target=name
            )
    for name, layer in linears.items():
        parent, _, own = name.rpartition(".")
        bias = cast("nn.Parameter | None", layer.bias)
        if bias is not None:
            bias.requires_grad_(False)
        stored = STORES[store](layer.weight, bias).train(layer.training)
        setattr(module.get_submodule(parent), own, stored)
    return len(linears)
