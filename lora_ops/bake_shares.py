"""What is baked: adapters with strengths, and their layers, each found to fit its parameter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .architectures import Parameter
from .dtypes import spelled
from .errors import FormatError, UnsupportedLayerError, WeightShapeError
from .formats import Module, read_layer
from .layers import Layer, LoraLayer
from .source import TensorSource


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """One layer of one adapter, times its strength.

    Attributes:
        source: The adapter.
        name: The module's name in it.
        module: The module's keys.
        strength: The factor; negative to take the layer out.
        scale: What the file's configuration gives a layer without an alpha of its own.
    """

    source: TensorSource
    name: str
    module: Module
    strength: float
    scale: float | None = None

    def read(self) -> Layer:
        """Read the layer."""
        return read_layer(self.source, self.name, self.module, self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """Everything that is added to one parameter.

    Attributes:
        parameter: Which, and where it lies.
        shares: The layers, at least one, in the order of the adapters.
    """

    parameter: Parameter
    shares: tuple[Share, ...]


def check_kind(share: Share) -> Layer:
    """Return a layer that can be added to a weight, without its data; only headers are read.

    Raises:
        UnsupportedLayerError: It is of a kind that cannot be added.
        LayerShapeError: Its factors do not fit together.
    """
    layer = read_layer(_Headers(share.source), share.name, share.module)
    if isinstance(layer, LoraLayer) and not layer.is_linear:
        raise UnsupportedLayerError(
            f"layer `{share.name}` has DoRA magnitudes, which rescale the weight and cannot be "
            "added to it; use a LoRA without `dora_scale`, or bake it with a program that knows it",
            target=share.name,
            path=share.source.name,
        )
    return layer


def check_fit(layer: Layer, share: Share, parameter: Parameter, checkpoint: TensorSource) -> None:
    """Refuse a layer whose shape is not that of its parameter, or which is no parameter of floats.

    Raises:
        WeightShapeError: It does not have the parameter's shape.
        FormatError: The parameter is not stored as floating point numbers.
    """
    if _plain(layer.shape) != _plain(parameter.shape):
        raise WeightShapeError(
            f"layer `{share.name}` of {share.source.name} changes a weight of shape {layer.shape}, "
            f"`{parameter.key}` in {checkpoint.name} is {parameter.shape}; the LoRA is for "
            "another model",
            target=parameter.target,
        )
    dtype = checkpoint.dtype(parameter.key)
    if not dtype.is_floating_point:
        raise FormatError(
            f"`{parameter.key}` is stored as {spelled(dtype)}, which are no "
            "weights to add to; give the checkpoint as it was before that was done to it",
            target=parameter.target,
            path=checkpoint.name,
        )


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without trailing ones: a linear and a 1x1 convolution hold the same numbers."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


class _Headers:
    """A source whose tensors have shapes but no data, so that layers can be checked unread."""

    def __init__(self, source: TensorSource) -> None:
        self.name = source.name
        self.metadata = source.metadata
        self.keys = source.keys
        self.shape = source.shape
        self.dtype = source.dtype
        self._source = source

    def tensor(self, key: str) -> Tensor:
        """The shape; an alpha is read, for a layer holds it as a number."""
        if key.endswith(".alpha"):
            return self._source.tensor(key)
        return torch.empty(self.shape(key), dtype=self.dtype(key), device="meta")
