"""Control of injected adapters: on and off, how strong, beside the weights or merged into them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from torch import nn

from ..errors import ArgumentError, UnsupportedLayerError
from .adapted import Adapted
from .inject import adapted_layers
from .paths import LoraPath
from .weights import stored_weight


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
    for path in _beside(module, name):
        path.strength = float(strength)


def merge_into(module: nn.Module, name: str | None = None) -> None:
    """Move an adapter's change into the weights, at its strength; None: those of all.

    The layer then runs at its own speed. What the weight was is kept, so that `unmerge` gives it
    back to the last bit. An adapter that is off stays out.

    Raises:
        MismatchError: The module has no such adapter.
        UnsupportedLayerError: A weight is stored in 4 or 8 bits, or is another layer's too; then
            nothing is merged.
    """
    moved: list[tuple[str, Adapted, list[LoraPath]]] = []
    for target, layer in adapted_layers(module, name):
        paths = [path for one, path in layer.paths().items() if name in (None, one)]
        if any(path.is_active for path in paths):
            layer.check_mergeable(target)
            moved.append((target, layer, paths))
    _check_own(module, {target: layer for target, layer, _ in moved})
    for _, layer, paths in moved:
        layer.merge(paths)


def unmerge(module: nn.Module, name: str | None = None) -> None:
    """Move an adapter's change out of the weights again; None: those of all.

    Raises:
        MismatchError: The module has no such adapter.
    """
    for _, layer in adapted_layers(module, name):
        layer.unmerge([path for one, path in layer.paths().items() if name in (None, one)])


def _switch(module: nn.Module, name: str | None, *, on: bool) -> None:
    for path in _beside(module, name):
        path.enabled = on


def _beside(module: nn.Module, name: str | None) -> list[LoraPath]:
    """The paths of an adapter, or of all; refused if one is merged into a weight."""
    found: list[LoraPath] = []
    for target, layer in adapted_layers(module, name):
        for one, path in layer.paths().items():
            if name not in (None, one):
                continue
            if path.merged:
                raise ArgumentError(
                    f"adapter `{one}` of `{target}` is in the weight; unmerge it first",
                    target=target,
                )
            found.append(path)
    return found


def _check_own(module: nn.Module, layers: Mapping[str, Adapted]) -> None:
    """Refuse to merge into a weight that is tied: another layer would change with it."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for target, layer in layers.items():
        shared = names.get(id(stored_weight(cast("nn.Module", layer))), [])
        others = [name for name in shared if name != f"{target}.weight"]
        if others:
            raise UnsupportedLayerError(
                f"the weight of `{target}` is that of `{others[0].removesuffix('.weight')}` too, "
                "which would change with it; leave the adapter beside the weight, or untie them",
                target=target,
            )
