"""Where a loaded model has what an adapter names: in the host's own list, then by lorakit's tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ...lora_ops import Adapter

# A weight's key in the host, or (key, (axis, start, length) or None[, function]): some of its rows,
# and what the host does to a change before it adds it.
Place = Any
# From tensors and the places of their modules to the host's patches.
Make = Callable[[Mapping[str, Tensor], Mapping[str, Place]], Mapping[Place, Any]]

NO_CLIP = "for a text encoder, and no CLIP is connected"
NO_MODEL = "for the diffusion model, and no MODEL is connected"
UNKNOWN = "the model has no weight of this name"
_ENCODERS = "text_encoders."
_WEIGHT, _BIAS = ".weight", ".bias"


@dataclass(frozen=True, slots=True, eq=False)
class Models:
    """What an adapter is to be applied to, as the host describes it.

    Attributes:
        places: The weight, or rows of it, by each name that a LoRA may call it.
        shapes: Of every weight, by key; those of the diffusion model and of the text encoders.
        encoders: The keys of the text encoders.
        has_clip: Whether text encoders are connected at all.
        make: Makes the host's patches.
        swap: Swaps the halves of a change, for a weight that another program has the other way round.
        has_model: Whether a diffusion model is connected at all.
    """

    places: Mapping[str, Place]
    shapes: Mapping[str, tuple[int, ...]]
    encoders: Collection[str]
    has_clip: bool
    make: Make
    swap: Callable[[Tensor], Tensor]
    has_model: bool = True

    def targets(self) -> dict[str, str]:
        """Every weight's key by its target."""
        return {
            (_ENCODERS + key if key in self.encoders else key).removesuffix(_WEIGHT): key
            for key in self.shapes
        }

    def shape(self, place: Place) -> tuple[int, ...] | None:
        """Shape of the weight, or rows, at a place; None where the model has no such weight."""
        whole = self.shapes.get(key_of(place))
        if whole is None or isinstance(place, str) or place[1] is None:
            return whole
        axis, start, length = place[1]
        if start + length > whole[axis]:  # the host's list may be that of another model
            return None
        return (*whole[:axis], length, *whole[axis + 1 :])


def key_of(place: Place) -> str:
    """The key of the weight that a place is, or is a part of."""
    return place if isinstance(place, str) else place[0]


def places_of(adapter: Adapter, models: Models, missing: dict[str, str]) -> dict[str, Place]:
    """Return where the model has the layers of an adapter, by their names in its file.

    In the host's order, so that of two layers for one weight the same one holds as there; what the
    host does not know comes first.

    Args:
        adapter: Its layers are not read.
        models: What it is to be applied to.
        missing: Is filled with the names that are nowhere, and why.
    """
    names = list(adapter.layers)
    rest = set(names)
    known: dict[str, Place] = {}
    for name, place in models.places.items():
        if name in rest:
            known[name] = place
        bias = name + _BIAS
        if bias in rest and bias not in models.places:
            known[bias] = _bias(place)
    rest -= known.keys()
    return _by_tables(adapter, [one for one in names if one in rest], models, missing) | known


def _bias(place: Place) -> Place:
    """The bias beside a weight, or the rows of it that belong to the weight's rows."""
    key = key_of(place).removesuffix(_WEIGHT) + _BIAS
    return key if isinstance(place, str) else (key, *place[1:])


def _by_tables(
    adapter: Adapter, names: Sequence[str], models: Models, missing: dict[str, str]
) -> dict[str, Place]:
    """What lorakit's tables know of names that the host does not."""
    from ...lora_ops import DictSource
    from ...lora_ops.adapters.formats import component
    from ...lora_ops.adapters.model import names_for
    from ...lora_ops.models.architectures import detect, parameters

    found: dict[str, Place] = {}
    asked: list[str] = []
    for name in names:
        of_clip = component(name) == "te"
        if not (models.has_clip if of_clip else models.has_model):
            missing[name] = NO_CLIP if of_clip else NO_MODEL
        else:
            asked.append(name)
    if not asked:
        return found
    targets = models.targets()
    held = {
        target + _WEIGHT * key.endswith(_WEIGHT): torch.empty(models.shapes[key], device="meta")
        for target, key in targets.items()
    }
    tables = names_for(adapter, detect(parameters(DictSource(held))), list(targets))
    for name in asked:
        at = tables.place(name)
        key = None if at is None else targets.get(at.native)
        if at is None or key is None:
            missing[name] = UNKNOWN
            continue
        rows = None
        if not at.is_whole:
            start, stop = (edge * models.shapes[key][0] for edge in (at.start, at.stop))
            rows = (0, round(start), round(stop) - round(start))
        function = (models.swap,) if at.swapped else ()
        found[name] = (key, rows, *function) if rows or function else key
    return found
