"""Which weights of a loaded model an adapter changes, and how: the plan behind Apply LoRA.

Every layer is accounted for: applied, replaced, or left with a reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .patch_places import UNKNOWN, Models, Place, key_of, places_of

if TYPE_CHECKING:
    from ...lora_ops import Adapter, Layer, MemoryFile

# The most reasons that a summary tells apart.
_REASONS = 4
# Kinds of which the host takes one where two are under one name, with the role and a word for it.
_REPLACING = {"set_weight": ("set", "its replacement"), "diff": ("full", "its full difference")}


@dataclass(slots=True, eq=False)
class Matched:
    """What becomes of each layer of an adapter.

    Attributes:
        patches: The host's patch and its strength, by place.
        names: The layer in the file, by place.
        replaced: Layers that a later layer for the same weight replaces, with the name of that one.
        missing: Layers that are not applied, and why.
        extras: Tensors of no known layer, by key.
    """

    patches: dict[Place, tuple[Any, float]] = field(
        default_factory=dict[Place, "tuple[Any, float]"]
    )
    names: dict[Place, str] = field(default_factory=dict[Place, str])
    replaced: dict[str, str] = field(default_factory=dict[str, str])
    missing: dict[str, str] = field(default_factory=dict[str, str])
    extras: tuple[str, ...] = ()

    def groups(self, keys: Collection[str], strength: float) -> dict[float, dict[Place, Any]]:
        """The patches on these weights by strength times a factor; those of 0 are left out."""
        found: dict[float, dict[Place, Any]] = defaultdict(dict)
        for place, (patch, own) in self.patches.items():
            if key_of(place) in keys and own * strength:
                found[own * strength][place] = patch
        return dict(found)


def match(file: MemoryFile, models: Models, blocks: str = "", where: Sequence[str] = ()) -> Matched:
    """Return what becomes of each layer of an adapter.

    Args:
        file: The adapter.
        models: What it is to be applied to.
        blocks: Strengths by block; see `lora_ops.rules`.
        where: `PATTERN=S`, in order; see `lora_ops.rules`.

    Raises:
        ArgumentError: A rule that fits nothing.
        FormatError: It is no adapter, or of a method that is not read.
    """
    from ...lora_ops import LoraOpsError, decode
    from ...lora_ops.adapters.strengths.rules import strengths
    from .patch_layers import spelled, why_not

    adapter = decode(file)
    factors = strengths(list(adapter.layers), blocks=blocks or None, where=where)
    matched = Matched(extras=tuple(adapter.extras))
    tensors: dict[str, Tensor] = {}
    fitting: dict[str, tuple[Place, Layer]] = {}
    unread: dict[type[LoraOpsError], str] = {}  # by sort of error, not by layer
    for name, place in places_of(adapter, models, matched.missing).items():
        shape = models.shape(place)
        try:
            layer, over = _layer(file, adapter, name)
        except LoraOpsError as error:
            why = unread.setdefault(type(error), f"cannot be read ({error.args[0]})")
            matched.missing[name] = why
            continue
        misfit = UNKNOWN if shape is None else why_not(layer, shape)
        if shape is None or misfit:
            matched.missing[name] = misfit
            continue
        tensors |= spelled(name, layer, adapter.keys[name], shape)
        fitting[name] = (place, layer)
        if over:
            matched.replaced[name] = over
    made = models.make(tensors, {name: place for name, (place, _) in fitting.items()})
    for name, (place, layer) in fitting.items():
        if place not in made:
            matched.missing[name] = f"ComfyUI has no patch for {layer.title}; bake it instead"
            continue
        if place in matched.names:
            matched.replaced[matched.names[place]] = name
        matched.patches[place] = (made[place], factors[name])
        matched.names[place] = name
    return matched


def _layer(file: MemoryFile, adapter: Adapter, name: str) -> tuple[Layer, str]:
    """A layer; of two under one name the one that the host takes, and what it is called."""
    keys = adapter.keys[name]
    held = [role for role in _REPLACING if role in keys and keys.keys() - {role, "alpha"}]
    if not held:
        return adapter.layers[name], ""
    from ...lora_ops.adapters.formats import Module, read_kind

    kind, title = _REPLACING[held[0]]
    return read_kind(file, name, Module(kind, {held[0]: keys[held[0]]})), title


def summary(matched: Matched) -> Iterator[tuple[str, list[str]]]:
    """The reasons for which layers are missing, each with its layers, the commonest first.

    What is left after some of them stands under one more.
    """
    grouped: dict[str, list[str]] = defaultdict(list)
    for name, reason in matched.missing.items():
        grouped[reason].append(name)
    ordered = sorted(grouped.items(), key=lambda item: -len(item[1]))
    yield from ordered[:_REASONS]
    if rest := ordered[_REASONS:]:
        yield f"{rest[0][0]}; or the like", [name for _, names in rest for name in names]
