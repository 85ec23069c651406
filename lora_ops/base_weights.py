"""The weights that an adapter changes, found in the checkpoint it was trained on, read one at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .adapter import Adapter
from .architectures import Architecture, Parameter, detect, parameters
from .bake_plan import found_targets
from .bake_shares import check_fit
from .checkpoints import check_checkpoint
from .convert_plan import names_for
from .deltas import read_parameter
from .errors import NonFiniteError
from .formats import ModelNames, resolve
from .layers import Layer, ReshapedLayer
from .source import TensorSource


@dataclass(frozen=True, slots=True, eq=False)
class BaseWeights:
    """Where the weights lie that the modules of an adapter change.

    Attributes:
        checkpoint: Where they are read from.
        parameters: By module.
        swapped: Modules whose weight has the halves of its rows in the other order there.
    """

    checkpoint: TensorSource
    parameters: Mapping[str, Parameter]
    swapped: Collection[str] = ()

    def weight(self, module: str) -> Tensor:
        """Read one weight as the module has it, in its stored dtype.

        Raises:
            NonFiniteError: It holds NaN or infinity.
        """
        parameter = self.parameters[module]
        weight = read_parameter(self.checkpoint, parameter)
        if not bool(weight.float().isfinite().all()):
            raise NonFiniteError(
                f"`{parameter.key}` holds NaN or infinite values; the file is damaged: use another",
                target=module,
                path=self.checkpoint.name,
            )
        return torch.cat(weight.chunk(2)[::-1]) if module in self.swapped else weight


def base_weights(
    adapter: Adapter,
    layers: Mapping[str, Layer],
    checkpoint: TensorSource,
    name: str,
    architecture: Architecture | None = None,
) -> BaseWeights:
    """Find the weights of an adapter's layers, and check that they fit, from headers alone.

    Names are found as `bake` finds them; a module of its own for some rows of a weight that the
    checkpoint has fused, by the tables of its architecture. A layer that does not need its weight
    need not have one.

    Args:
        adapter: Of any naming.
        layers: Its layers; their data is not looked at.
        checkpoint: The model that it was trained on.
        name: What messages call the adapter.
        architecture: Of the model; None: told by the checkpoint, else by the adapter.

    Raises:
        MismatchError: The checkpoint is an adapter.
        TargetMismatchError: A weight that is needed is not there.
        WeightShapeError: A layer does not have its weight's shape.
        FormatError: A weight is not stored as floating point numbers, or with scales.
    """
    check_checkpoint(checkpoint)
    known = parameters(checkpoint)
    targets = {one.target: one for one in known.values()}
    found = {
        module: targets[target]
        for module, target in resolve(layers, targets).items()
        if target in targets
    }
    names = names_for(adapter, architecture or detect(known), list(targets))
    swapped: set[str] = set()
    for module in layers.keys() - found.keys():
        parameter, turned = _rows(names, module, targets)
        if parameter is not None:
            found[module] = parameter
        if turned:
            swapped.add(module)
    needed = [module for module, layer in layers.items() if layer.needs_base]
    lost = [module for module in needed if module not in found]
    if lost:
        found_targets(lost, targets, adapter=name, checkpoint=checkpoint.name)
    for module, parameter in found.items():
        layer = layers[module]
        if not isinstance(layer, ReshapedLayer):  # for which the weight grows
            check_fit(layer, module, name, parameter, checkpoint)
    return BaseWeights(checkpoint, found, swapped)


def _rows(
    names: ModelNames, module: str, targets: Mapping[str, Parameter]
) -> tuple[Parameter | None, bool]:
    """Where the rows of a fused weight lie that a module changes, and whether they are swapped."""
    place = names.place(module)
    whole = targets.get(place.native) if place is not None else None
    if place is None or whole is None:
        return None, False
    if place.is_whole:
        return whole, place.swapped
    edges = [edge * whole.shape[0] for edge in (place.start, place.stop)]
    if whole.rows is not None or any(edge.denominator > 1 for edge in edges):
        return None, False
    first, last = map(int, edges)
    return replace(whole, rows=(first, last), shape=(last - first, *whole.shape[1:])), False
