"""What an operation will do, for people and for machines: one shape for all, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..adapters.edited import kind_of
from ..adapters.formats import component
from ..adapters.layers import Layer
from ..elements import Element, element_in
from ..report import Skip

# Roles whose dtype is nobody's choice.
_KEPT = ("alpha", "dora_scale", "magnitude", "on_input", "reshape_weight")


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One layer, or one tensor, and what is to become of it.

    Attributes:
        target: Its name.
        component: unet, te, vae, ...
        kind: linear, conv 3x3, ...
        shape: Of the weight.
        done: What is done to it, in a word or two; empty where the operation does one thing.
        rank_at_most: The largest rank that it can get; None where there is no rank to choose.
    """

    target: str
    component: str
    kind: str
    shape: tuple[int, ...]
    done: str = ""
    rank_at_most: int | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """What an operation will do.

    Attributes:
        output: Where the result is to go.
        size_at_most: Its size in bytes, at most.
        layers: What is in the result.
        told: How it is done, for people: `rank rule 32, float16`.
        settings: The same for machines, by name.
        architecture: Title of the model's; None: unknown.
        inputs: What goes in, for people.
        skips: What is left out and why; their norms are not known.
        notes: What else is worth saying.
        by_component: Whether people want to see components, not kinds.
    """

    output: str
    size_at_most: int
    layers: tuple[PlannedLayer, ...]
    told: str = ""
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    architecture: str | None = None
    inputs: tuple[str, ...] = ()
    skips: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    by_component: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what an operation has nothing of is not in it."""
        found: dict[str, Any] = {"inputs": list(self.inputs)} if self.inputs else {}
        found |= {"output": self.output, "size_at_most": self.size_at_most}
        found |= {"architecture": self.architecture, **self.settings}
        found["layers"] = [_layer_dict(one) for one in self.layers]
        if self.skips:
            found["skips"] = [
                {
                    "target": one.target,
                    "component": one.component,
                    "kind": one.kind,
                    "reason": one.reason,
                }
                for one in self.skips
            ]
        if self.notes:
            found["notes"] = list(self.notes)
        return found


def planned_layer(
    target: str, layer: Layer, done: str, rank_at_most: int | None = None
) -> PlannedLayer:
    """Return what is to become of a layer, which needs no data."""
    return PlannedLayer(
        target, component(target), kind_of(target, layer), layer.shape, done, rank_at_most
    )


def planned_skip(target: str, layer: Layer, reason: str) -> Skip:
    """Return a layer that will be left out, which needs no data."""
    return Skip(target, component(target), kind_of(target, layer), reason, 0.0)


def stored_size(layer: Layer, element: Element | None = None) -> int:
    """Bytes of a layer in a file, its alpha included; it needs no data.

    Args:
        layer: Which.
        element: What its numbers are to be; None: as they are.
    """
    size = 0
    for role, tensor in layer.tensors().items():
        wide = element_in(tensor) if element is None or role in _KEPT else element
        size += tensor.numel() * wide.bits // 8
    return size


def _layer_dict(one: PlannedLayer) -> dict[str, Any]:
    found: dict[str, Any] = {
        "target": one.target,
        "component": one.component,
        "kind": one.kind,
        "shape": list(one.shape),
    }
    found |= {"done": one.done} if one.done else {}
    found |= {} if one.rank_at_most is None else {"rank_at_most": one.rank_at_most}
    return found
