"""What goes into the layers of an adapter, from a record by the names of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...adapters.formats import model_names, resolve
from ...adapters.layers import Layer
from ...errors import ArgumentError
from ...linalg.moments import Moment, check_weighs
from ...linalg.ranks.budgets import Budget
from ...linalg.ranks.rules import RankRule
from ...models.activations import Activations, read_activations
from ...models.architectures import Architecture
from ...source import TensorSource


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """Records of an adapter's layers.

    Attributes:
        activations: By the model's names.
        targets: The model's name of each layer that has a record, by that of the adapter.
    """

    activations: Activations
    targets: Mapping[str, str]

    def moment(self, target: str) -> Moment | None:
        """What goes into one layer, read when it is asked for; None where it was not recorded."""
        own = self.targets.get(target)
        return None if own is None else self.activations.moment(own)


def recorded(
    source: TensorSource | None,
    layers: Mapping[str, Layer],
    architecture: Architecture | None,
    rule: RankRule | Budget,
    base: TensorSource | None,
) -> Recorded | None:
    """Find the records of an adapter's layers, once it is sure that they can be used.

    A layer of rows of a fused projection has its input.

    Args:
        source: The record; None: there is none.
        layers: Of the adapter, of any naming; their data is not looked at.
        architecture: Of the model, where it is known.
        rule: How many directions a layer gets.
        base: The checkpoint, where layers are made from it.

    Raises:
        ArgumentError: The rule is a budget, or layers are made from the base weight.
        FormatError: It is no record.
        MismatchError: It is one of another model.
    """
    if source is None:
        return None
    check_weighs(rule)
    if base is not None:
        raise ArgumentError(
            "activations weigh a change that is added to a weight, and some are made from the base; make "
            "them plain LoRAs first, or leave one of them out"
        )
    found = read_activations(source)
    known = {name: own for name, own in resolve(layers, found.forms).items() if own in found.forms}
    lost = [name for name in layers if name not in known]
    table = model_names(architecture, list(found.forms)) if lost else None
    for name in lost:
        place = None if table is None else table.place(name)
        if place is not None and place.native in found.forms:
            known[name] = place.native
    found.check((known.get(name, name), layer.shape) for name, layer in layers.items())
    return Recorded(found, known)
