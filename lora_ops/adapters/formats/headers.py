"""What a header says of a layer: whether it is of a method with factors, and what shape it changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from ...errors import LoraOpsError
from ...source import TensorSource
from ..layers import Layer
from ..naming.suffixes import Module
from ..outline import HeaderOnlySource, outline
from .kinds import read_kind

# Kinds that store a parameter whole: also norms and tables, which are in no list of modules.
_WHOLE = ("full", "set")
Told = tuple[bool, "tuple[int, ...] | None"]
"""Whether a layer has factors, and its shape (out, in, …); None for one that cannot be read."""


@runtime_checkable
class Headed(Protocol):
    """Layers that say what they are before they are read."""

    def told(self, target: str) -> Told:
        """What the header says of one layer."""
        ...


def told(source: TensorSource, name: str, module: Module) -> Told:
    """Return what a file's header says of a module."""
    keys = {role: key for role, key in module.keys.items() if role != "alpha"}
    if module.kind == "lora" and keys.keys() == {"up", "down"}:
        up, down = (source.shape(keys[role]) for role in ("up", "down"))
        return True, (up[0], *down[1:]) if min(len(up), len(down)) > 1 else None
    try:
        layer = read_kind(HeaderOnlySource(source), name, Module(module.kind, keys))
    except LoraOpsError:
        return module.kind not in _WHOLE, None
    return module.kind not in _WHOLE, layer.shape


def told_of(layers: Mapping[str, Layer]) -> dict[str, Told]:
    """Return what `told` does for layers that are in memory, or read when asked for."""
    if isinstance(layers, Headed):
        return {target: layers.told(target) for target in layers}
    known = outline(layers).items()
    return {target: (layer.has_factors, layer.shape) for target, layer in known}
