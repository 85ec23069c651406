"""While an adapter is in a module: on and off, how strong, beside the weights or in them."""

from __future__ import annotations

import math

from torch import nn

from ..errors import ArgumentError
from .inject import adapted_layers
from .paths import LoraPath


def enable(module: nn.Module, name: str | None = None) -> None:
    """Let an adapter add its change again; None: all of them.

    Raises:
        MismatchError: The module has no such adapter.
    """
    _switch(module, name, on=True)


def disable(module: nn.Module, name: str | None = None) -> None:
    """Let an adapter add nothing; None: all of them. Weights are not touched.

    Raises:
        MismatchError: The module has no such adapter.
        ArgumentError: It is merged into the weights.
    """
    _switch(module, name, on=False)


def set_strength(module: nn.Module, strength: float, name: str | None = None) -> None:
    """Set the factor on an adapter; None: on all of them. Weights are not touched.

    Raises:
        MismatchError: The module has no such adapter.
        ArgumentError: The strength is no finite number, or the adapter is merged into the weights.
    """
    if not math.isfinite(strength):
        raise ArgumentError(f"strength {strength} is not a finite number")
    for target, layer in adapted_layers(module, name):
        for one, path in layer.paths().items():
            if name in (None, one):
                _check_beside(target, one, path)
                path.strength = float(strength)


def merge_into(module: nn.Module, name: str | None = None) -> None:
    """Move an adapter's change into the weights, at its strength; None: those of all.

    The layer then runs at its own speed. What the weight was is kept, so that `unmerge` gives it
    back to the last bit. An adapter that is off stays out.

    Raises:
        MismatchError: The module has no such adapter.
        UnsupportedLayerError: A weight is stored in 4 or 8 bits.
    """
    for target, layer in adapted_layers(module, name):
        layer.merge([path for one, path in layer.paths().items() if name in (None, one)], target)


def unmerge(module: nn.Module, name: str | None = None) -> None:
    """Move an adapter's change out of the weights again; None: those of all.

    Raises:
        MismatchError: The module has no such adapter.
    """
    for _, layer in adapted_layers(module, name):
        layer.unmerge([path for one, path in layer.paths().items() if name in (None, one)])


def _switch(module: nn.Module, name: str | None, *, on: bool) -> None:
    for target, layer in adapted_layers(module, name):
        for one, path in layer.paths().items():
            if name in (None, one):
                _check_beside(target, one, path)
                path.enabled = on


def _check_beside(target: str, name: str, path: LoraPath) -> None:
    if path.merged:
        raise ArgumentError(
            f"adapter `{name}` of `{target}` is in the weight; unmerge it first", target=target
        )
