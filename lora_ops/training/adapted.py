"""Layers that carry paths: the module stays the object it was, and learns to add them.

A module becomes an instance of a subclass of its own class, as `torch.nn.utils.parametrize` does
it. Its weights keep their identity, their names in a state dict and whatever shares them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UnsupportedLayerError
from .paths import LoraPath
from .stored import StoredLinear
from .weights import dense_weight, stored_weight, turned_classes

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
    #: Whether others take its weight without calling it, so that the paths have to be in that.
    is_read: ClassVar[bool] = False
    adapters: nn.ModuleDict
    unmerged: Tensor | None = None
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

    def merge(self, paths: Sequence[LoraPath]) -> None:
        """Move those of these paths that are on into the weight."""
        for path in paths:
            path.merged |= path.is_active
        self._write_weight()

    def check_mergeable(self, name: str) -> None:
        """Refuse to merge into a weight that is not stored as plain numbers.

        Args:
            name: The layer's name.

        Raises:
            UnsupportedLayerError: It is stored in 4 or 8 bits.
        """
        weight = stored_weight(cast("nn.Module", self))
        if weight is None or not weight.is_floating_point():
            raise UnsupportedLayerError(
                f"the weight of `{name}` is stored in few bits, which cannot take a change; "
                "collect the adapter and bake it into the full-precision checkpoint",
                target=name,
            )

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
        weight = cast("Tensor", stored_weight(cast("nn.Module", self)))
        # The model may have been moved or rounded since.
        original = weight.detach().clone() if self.unmerged is None else self.unmerged.to(weight)
        changed = original
        if merged:
            whole = self.upright(original)
            changes = (path.layer().change(whole, path.strength) for path in merged)
            changed = self.upright(sum(changes, whole.float()))
        with torch.no_grad():
            weight.copy_(changed)
        self.unmerged = original if merged else None

    def plain(self, input: Tensor) -> Tensor:
        """The layer's own output."""
        return super().forward(input)

    def own(self, input: Tensor, plain: Tensor | None = None) -> Tensor:
        """What the weight without any path makes of an input, without the bias.

        Args:
            input: The layer's.
            plain: The layer's own output of it, where it is known.
        """
        if self.unmerged is not None:
            return self.through(input, self.unmerged.to(input))
        output = self.plain(input) if plain is None else plain
        return output if self.bias is None else output - self.by_channel(self.bias)

    def dense(self) -> Tensor:
        """The weight without any path as the layer computes with it, float32, without a gradient."""
        return dense_weight(cast("nn.Module", self))

    def upright(self, weight: Tensor) -> Tensor:
        """Turn a weight from its stored form to (out, in, *kernel), or back."""
        return weight

    def through(self, input: Tensor, weight: Tensor) -> Tensor:
        """The output of another weight, as it is stored, without the bias."""
        raise NotImplementedError

    def by_channel(self, numbers: Tensor) -> Tensor:
        """One number an output channel, in a shape that multiplies the output."""
        return numbers

    def low_rank(self, input: Tensor, up: Tensor, down: Tensor, factor: float) -> Tensor:
        """The output of a change factor * up @ down of the weight."""
        raise NotImplementedError


class OfLinear(Adapted):
    """How paths run in a linear layer: (…, in) to (…, out)."""

    def through(self, input: Tensor, weight: Tensor) -> Tensor:
        """Input times weight."""
        return functional.linear(input, weight)

    def low_rank(self, input: Tensor, up: Tensor, down: Tensor, factor: float) -> Tensor:
        """Down, then up."""
        return functional.linear(_times(functional.linear(input, down), factor), up)


class OfTurnedLinear(OfLinear):
    """How paths run in a linear layer that stores its weight as (in, out)."""

    def upright(self, weight: Tensor) -> Tensor:
        """The stored weight transposed: (out, in)."""
        return weight.mT

    def through(self, input: Tensor, weight: Tensor) -> Tensor:
        """Input times weight."""
        return functional.linear(input, weight.mT)


class OfReadLinear(OfLinear):
    """How paths run in a linear layer whose weight others read: the weight that they get has them.

    The parameter stays what it is, under its name in the state dict.
    """

    is_read = True

    @property
    def weight(self) -> Tensor:
        """(out, in), with the paths that are on; has their gradient."""
        changed = cast("Tensor", stored_weight(cast("nn.Module", self)))
        dense = self.dense()
        for path in self.paths().values():
            if path.is_active:
                changed = changed + path.change(dense).to(changed)
        return changed

    def forward(self, input: Tensor) -> Tensor:
        """The output of that weight."""
        return self.plain(input)


class OfConvolution(Adapted):
    """How paths run in a convolution: down with its kernel, then up with a kernel of 1."""

    def through(self, input: Tensor, weight: Tensor) -> Tensor:
        """The layer's own convolution, which knows its padding mode, with this weight."""
        layer = cast("nn.Conv2d | nn.Conv3d", self)
        return layer._conv_forward(input, weight, None)  # pyright: ignore[reportPrivateUsage]

    def low_rank(self, input: Tensor, up: Tensor, down: Tensor, factor: float) -> Tensor:
        """Two convolutions."""
        narrow = self.through(input, down)
        convolution = functional.conv2d if up.ndim == 4 else functional.conv3d
        return convolution(_times(narrow, factor), up)

    def by_channel(self, numbers: Tensor) -> Tensor:
        """Channels are the second axis of a batch."""
        return numbers.reshape(-1, *(1 for _ in cast("nn.Conv2d", self).weight.shape[2:]))


class OfEmbedding(Adapted):
    """How paths run in an embedding: rows of up, (numbers, rank), are looked up, then down."""

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


class AdaptedReadLinear(OfReadLinear, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A linear layer whose weight others take, with paths."""

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
    AdaptedReadLinear,
    AdaptedStoredLinear,
    AdaptedConv2d,
    AdaptedConv3d,
    AdaptedEmbedding,
)


def _times(narrow: Tensor, factor: float) -> Tensor:
    """The few numbers between the factors, times a factor."""
    return narrow if factor == 1 else narrow * factor


def is_supported(module: nn.Module) -> bool:
    """Whether a path can run beside this module."""
    return isinstance(module, (*(one.original for one in _KNOWN), *turned_classes()))


def adapt(module: nn.Module, *, is_read: bool = False) -> Adapted:
    """Make a module one that carries paths, if it is not yet.

    Args:
        module: Linear, conv2d, conv3d or embedding, without groups.
        is_read: Whether others take its weight without calling it; see `read_layers`.

    Raises:
        UnsupportedLayerError: It is of another class.
    """
    if isinstance(module, Adapted):
        return module
    module.__class__ = _adapted_class(type(module), is_read)
    adapted = cast("Adapted", module)
    adapted.adapters = nn.ModuleDict()
    return adapted


def restore(module: Adapted) -> None:
    """Make a module what it was before `adapt`."""
    del module.adapters
    module.__dict__.pop("unmerged", None)
    cast("nn.Module", module).__class__ = type(module).original


@functools.cache
def _adapted_class(original: type[nn.Module], is_read: bool) -> type[Adapted]:
    """The class with paths for a layer's class: one of those above, or one that is made for it."""
    fitting = [known for known in _KNOWN if known.is_read == is_read]
    for known in fitting:
        if original is known.original:
            return known
    for known in fitting:
        if issubclass(original, known.original):
            return _made(known.__mro__[1], original)
    if issubclass(original, turned_classes()):
        return _made(OfTurnedLinear, original)
    raise UnsupportedLayerError(
        f"a {original.__name__} has no low-rank path: linear, conv2d, conv3d and embedding layers do"
    )


def _made(paths: type, original: type[nn.Module]) -> type[Adapted]:
    """Make a subclass of a layer's class that carries paths."""
    body = {"original": original, "__doc__": paths.__doc__}
    return cast("type[Adapted]", type(f"Adapted{original.__name__}", (paths, original), body))
