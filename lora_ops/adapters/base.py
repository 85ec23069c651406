"""The weights that an adapter changes, found in the checkpoint it was trained on, read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import FormatError, NonFiniteError, UnsupportedLayerError, WeightShapeError
from ..models.architectures import Architecture, Parameter, detect, parameters
from ..models.differences import read_parameter
from ..source import TensorSource
from .adapter import Adapter
from .checkpoint import check_checkpoint
from .edited import described
from .layers import DoraLayer, Layer, ReshapedLayer, fits, unpadded
from .matching.own_names import with_own_names
from .matching.seats import Seat, bias_seat, found_seats, seats
from .model import names_for


@dataclass(frozen=True, slots=True, eq=False)
class BaseWeights:
    """Where the weights lie that the modules of an adapter change.

    Attributes:
        checkpoint: Where they are read from.
        seats: Where each module's weight lies.
    """

    checkpoint: TensorSource
    seats: Mapping[str, Seat]

    def shape(self, module: str) -> tuple[int, ...] | None:
        """Shape of the weight as the module has it; None where the checkpoint has none."""
        seat = self.seats.get(module)
        return None if seat is None else seat.own.shape

    def weight(self, module: str) -> Tensor:
        """Read one weight as the module has it, in its stored dtype.

        Raises:
            NonFiniteError: It holds NaN or infinity.
        """
        seat = self.seats[module]
        parameter = seat.own
        weight = read_parameter(self.checkpoint, parameter)
        if not bool(weight.float().isfinite().all()):
            raise NonFiniteError(
                f"`{parameter.key}` holds NaN or infinite values; the file is damaged: use another",
                target=module,
                path=self.checkpoint.name,
            )
        return replace(seat, rows=None).taken(weight)


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
        UnsupportedLayerError: A layer changes a bias besides, which the result has no place for.
    """
    check_checkpoint(checkpoint)
    known = parameters(checkpoint)
    targets = with_own_names(layers, checkpoint, known)
    names = names_for(adapter, architecture or detect(known), list(targets))
    found = seats(layers, targets, lambda: names)
    needed = [module for module, layer in layers.items() if layer.needs_base]
    lost = [module for module in needed if module not in found]
    if lost:
        found_seats(lost, targets, lambda: names, adapter=name, checkpoint=checkpoint.name)
    for module, seat in found.items():
        layer = layers[module]
        bias = bias_seat(seat, targets)
        if bias is not None and layer.bias is not None:
            raise UnsupportedLayerError(
                f"layer `{module}` of {name} {described(layer)}: it multiplies `{bias.parameter.key}` "
                f"of {checkpoint.name} too, and a LoRA of the weight cannot hold that; bake it, and "
                "`extract()` what changed",
                target=module,
            )
        if not isinstance(layer, ReshapedLayer):  # its weight grows first: no shape to compare
            check_fit(layer, module, name, seat.own, checkpoint)
    return BaseWeights(checkpoint, found)


def check_fit(
    layer: Layer, name: str, adapter: str, parameter: Parameter, checkpoint: TensorSource
) -> None:
    """Refuse a layer whose shape is not that of its parameter, or which is no parameter of floats.

    Args:
        layer: Without its data, or with it.
        name: The module's name, for messages.
        adapter: What messages call its file.
        parameter: The parameter that it changes.
        checkpoint: The checkpoint that holds the parameter.

    Raises:
        WeightShapeError: The layer does not have the parameter's shape.
        FormatError: The parameter is not stored as floating point numbers.
    """
    if not fits(layer.shape, parameter.shape):
        raise WeightShapeError(
            f"layer `{name}` of {adapter} changes a weight of shape {layer.shape}, "
            f"`{parameter.key}` in {checkpoint.name} is {parameter.shape}; the LoRA is for "
            "another model",
            target=parameter.target,
        )
    plain = unpadded(layer)
    if isinstance(plain, DoraLayer):
        plain.check_magnitudes(parameter.shape)
    element = checkpoint.element(parameter.key)
    if not element.is_floating_point:
        raise FormatError(
            f"`{parameter.key}` is stored as {element.title}, which are no "
            "weights to add to; give the checkpoint as it was before that was done to it",
            target=parameter.target,
            path=checkpoint.name,
        )
