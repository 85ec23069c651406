"""Layers that carry paths: the module stays the object it was, and learns to add them.

A module becomes an instance of a subclass of its own class, as `torch.nn.utils.parametrize` does
it. Its weights keep their identity, their names in a state dict and whatever shares them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UnsupportedLayerError
from .paths import LoraPath
from .stored import StoredLinear

if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object


class Adapted(_Base):
    """What all layers with paths have in common; stands before the layer's own class.

    Attributes:
        adapters: The paths by name.
        unmerged: The weight without any of them; None while none is merged into it.
    """

    #: The class that the module had.
    original: ClassVar[type[nn.Module]]
    adapters: nn.ModuleDict
    unmerged: Tensor | None = None
    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """The layer's own output, and what each path adds to it."""
        plain = result = self.plain(input)
        for path in self.paths().values():
            if path.is_active:
                result = result + path.contribution(self, input, plain).to(result.dtype)
        return result

    def paths(self) -> dict[str, LoraPath]:
        """The paths by name, in the order in which they came."""
        return {name: cast("LoraPath", path) for name, path in self.adapters.items()}

    def merge(self, paths: Sequence[LoraPath], name: str) -> None:
        """Move paths into the weight, those that are on.

        Args:
            paths: Of this layer.
            name: The layer's, for messages.

        Raises:
            UnsupportedLayerError: The weight is not stored as plain numbers.
        """
        active = [path for path in paths if path.is_active]
        weight = getattr(self, "weight", None)
        if active and (weight is None or not weight.is_floating_point()):
            raise UnsupportedLayerError(
                f"the weight of `{name}` is stored in few bits, which cannot take a change; "
                "collect the adapter and bake it into the full-precision checkpoint",
                target=name,
            )
        for path in active:
            path.merged = True
        self._write_weight()

    def unmerge(self, paths: Sequence[LoraPath]) -> None:
        """Move paths out of the weight again."""
        for path in paths:
            path.merged = False
        self._write_weight()

    def _write_weight(self) -> None:
        """Make the weight what it is with the paths that are merged, computed in float32."""
        merged = [path for path in self.paths().values() if path.merged]
        if self.unmerged is None and not merged:
            return
        original = self.weight.detach().clone() if self.unmerged is None else self.unmerged
        changed = original
        if merged:
            changes = (path.layer().change(original, path.strength) for path in merged)
            changed = sum(changes, original.float())
        with torch.no_grad():
            self.weight.copy_(changed)
        self.unmerged = original if merged else None

    def plain(self, input: Tensor) -> Tensor:
        """The layer's own output."""
        return super().forward(input)

    def dense(self) -> Tensor:
        """The weight as the layer computes with it, float32, without a gradient."""
        return dense_weight(cast("nn.Module", self))

    def by_channel(self, numbers: Tensor) -> Tensor:
        """One number an output channel, in a shape that multiplies the output."""
        return numbers

    def low_rank(self, input: Tensor, up: Tensor, down: Tensor, factor: float) -> Tensor:
        """The output of a change factor * up @ down of the weight."""
        raise NotImplementedError


class OfLinear(Adapted):
    """Of a linear layer: (…, in) to (…, out)."""

    def low_rank(self, input: Tensor, up: Tensor, down: Tensor, factor: float) -> Tensor:
        """Down, then up."""
        return functional.linear(_times(functional.linear(input, down), factor), up)


class OfConvolution(Adapted):
    """Of a convolution: down with its kernel, stride and padding, then up with a kernel of 1."""

    def low_rank(self, input: Tensor, up: Tensor, down: Tensor, factor: float) -> Tensor:
        """Two convolutions; the first by the layer's own hand, which knows its padding mode."""
        layer = cast("nn.Conv2d | nn.Conv3d", self)
        narrow = layer._conv_forward(input, down, None)  # pyright: ignore[reportPrivateUsage]
        convolution = functional.conv2d if up.ndim == 4 else functional.conv3d
        return convolution(_times(narrow, factor), up)

    def by_channel(self, numbers: Tensor) -> Tensor:
        """Channels are the second axis of a batch."""
        return numbers.reshape(-1, *(1 for _ in self.weight.shape[2:]))


class OfEmbedding(Adapted):
    """Of a table of rows: up is looked up instead of the weight, (numbers, rank)."""

    def low_rank(self, input: Tensor, up: Tensor, down: Tensor, factor: float) -> Tensor:
        """Rows of up, then down."""
        table = cast("nn.Embedding", self)
        rows = functional.embedding(
            input, up, table.padding_idx, None, 2.0, table.scale_grad_by_freq, table.sparse
        )
        return _times(rows, factor) @ down


class AdaptedLinear(OfLinear, nn.Linear):
    """A linear layer with paths."""

    original = nn.Linear


class AdaptedConv2d(OfConvolution, nn.Conv2d):
    """A 2-D convolution with paths."""

    original = nn.Conv2d


class AdaptedConv3d(OfConvolution, nn.Conv3d):
    """A 3-D convolution with paths."""

    original = nn.Conv3d


class AdaptedEmbedding(OfEmbedding, nn.Embedding):
    """An embedding with paths."""

    original = nn.Embedding


class AdaptedStoredLinear(OfLinear, StoredLinear):
    """A linear layer in 4 or 8 bits, with paths."""

    original = StoredLinear


_KNOWN: tuple[type[Adapted], ...] = (
    AdaptedLinear,
    AdaptedStoredLinear,
    AdaptedConv2d,
    AdaptedConv3d,
    AdaptedEmbedding,
)


def _times(narrow: Tensor, factor: float) -> Tensor:
    """The numbers between the factors, of which there are few, times what is needed."""
    return narrow if factor == 1 else narrow * factor


def dense_weight(module: nn.Module) -> Tensor:
    """A layer's weight as it computes with it, float32, without a gradient.

    Raises:
        UnsupportedLayerError: It is stored in a way that is not known here.
    """
    if isinstance(module, StoredLinear):
        return module.dequantised()
    weight = cast("Tensor", module.weight).detach()
    return weight.float() if weight.is_floating_point() else _of_bitsandbytes(module)


def _of_bitsandbytes(module: nn.Module) -> Tensor:
    """The weight of a Linear4bit, or of a Linear8bitLt."""
    weight = cast("Any", module.weight)
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit  # pyright: ignore

        return dequantize_4bit(weight.data, weight.quant_state).float()
    if getattr(weight, "SCB", None) is not None:
        return weight.data.float() * weight.SCB[:, None] / 127
    raise UnsupportedLayerError(
        f"a {type(module).__name__} stores its weight in {weight.dtype}, which cannot be read; load "
        "the model in full precision, and store it with `store_frozen`"
    )


def is_supported(module: nn.Module) -> bool:
    """Whether a path can run beside this module."""
    return isinstance(module, tuple(one.original for one in _KNOWN))


def adapt(module: nn.Module) -> Adapted:
    """Make a module one that carries paths, if it is not yet.

    Raises:
        UnsupportedLayerError: It is none of linear, conv2d, conv3d and embedding, or has groups.
    """
    if isinstance(module, Adapted):
        return module
    if getattr(module, "groups", 1) != 1:
        raise UnsupportedLayerError(
            f"a convolution in {module.groups} groups has no low-rank path; leave it out of the targets"
        )
    module.__class__ = _adapted_class(type(module))
    adapted = cast("Adapted", module)
    adapted.adapters = nn.ModuleDict()
    return adapted


def restore(module: Adapted) -> None:
    """Make a module what it was before `adapt`."""
    del module.adapters
    module.__dict__.pop("unmerged", None)
    cast("nn.Module", module).__class__ = type(module).original


@functools.cache
def _adapted_class(original: type[nn.Module]) -> type[Adapted]:
    """The class with paths of a class: ours of torch's own, else one made for it."""
    for known in _KNOWN:
        if original is known.original:
            return known
    for known in _KNOWN:
        if issubclass(original, known.original):
            body = {"original": original, "__doc__": known.__doc__}
            made = type(f"Adapted{original.__name__}", (known.__mro__[1], original), body)
            return cast("type[Adapted]", made)
    raise UnsupportedLayerError(
        f"a {original.__name__} has no low-rank path: linear, conv2d, conv3d and embedding layers do"
    )
