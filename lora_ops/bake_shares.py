"""What is baked: adapters with strengths, and their layers, each found to fit its parameter."""

from __future__ import annotations

from dataclasses import dataclass

from .architectures import Parameter
from .dtypes import spelled
from .edit import described
from .errors import FormatError, UnsupportedLayerError, WeightShapeError
from .formats import Configured, Module, read_configured
from .layers import DoraLayer, Layer, ReshapedLayer, fits
from .matching import Seat
from .outline import Outline
from .source import TensorSource


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """One layer of one adapter, times its strength.

    Attributes:
        source: The adapter.
        name: The module's name in it.
        module: The module's keys.
        strength: The factor; negative to take the layer out.
        told: What the file's configuration says of it.
        needs_base: Whether its change is made from the weight.
        seat: Where it lies in the checkpoint; None where that has no place for it.
    """

    source: TensorSource
    name: str
    module: Module
    strength: float
    told: Configured | None = None
    needs_base: bool = False
    seat: Seat | None = None

    def read(self) -> Layer:
        """Read the layer."""
        return read_configured(self.source, self.name, self.module, self.told)


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """Everything that is added to one parameter.

    Attributes:
        parameter: Which, and where it lies.
        shares: The layers, at least one, in the order of the adapters.
    """

    parameter: Parameter
    shares: tuple[Share, ...]


def check_kind(share: Share, sign: int = 1) -> Layer:
    """Return a layer that can be baked, without its data; only headers are read.

    Args:
        share: The layer.
        sign: 1 to bake, -1 to unbake.

    Raises:
        UnsupportedLayerError: It is of a kind that is not read, or that cannot be taken out.
        LayerShapeError: Its factors do not fit together.
    """
    layer = read_configured(Outline(share.source), share.name, share.module, share.told)
    if sign < 0 and layer.needs_base:
        raise UnsupportedLayerError(
            f"layer `{share.name}` {described(layer)}: what it changed was made from the weight as "
            "it was before, so it cannot be taken out again; go back to the checkpoint it was baked into",
            target=share.name,
            path=share.source.name,
        )
    return layer


def check_fit(
    layer: Layer, name: str, adapter: str, parameter: Parameter, checkpoint: TensorSource
) -> None:
    """Refuse a layer whose shape is not that of its parameter, or which is no parameter of floats.

    Args:
        layer: Without its data, or with it.
        name: The module's name, for messages.
        adapter: What messages call its file.
        parameter: Which it is to change.
        checkpoint: Where that lies.

    Raises:
        WeightShapeError: It does not have the parameter's shape.
        FormatError: The parameter is not stored as floating point numbers.
    """
    if not fits(layer.shape, parameter.shape):
        raise WeightShapeError(
            f"layer `{name}` of {adapter} changes a weight of shape {layer.shape}, "
            f"`{parameter.key}` in {checkpoint.name} is {parameter.shape}; the LoRA is for "
            "another model",
            target=parameter.target,
        )
    plain = layer.inner if isinstance(layer, ReshapedLayer) else layer
    if isinstance(plain, DoraLayer):
        plain.check_magnitudes(parameter.shape)
    dtype = checkpoint.dtype(parameter.key)
    if not dtype.is_floating_point:
        raise FormatError(
            f"`{parameter.key}` is stored as {spelled(dtype)}, which are no "
            "weights to add to; give the checkpoint as it was before that was done to it",
            target=parameter.target,
            path=checkpoint.name,
        )
