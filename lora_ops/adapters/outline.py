"""Adapters without their data: what their layers are is known from headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from ..elements import Element, shaped
from ..source import TensorSource
from .adapter import Adapter
from .layers import Layer

if TYPE_CHECKING:
    import torch

_ALPHA = ".alpha"
# Endings of tensors with one or a few numbers that say what a layer is: they are read.
_TOLD = (".on_input", ".reshape_weight")


@runtime_checkable
class Lazy(Protocol):
    """Layers that are read, or made, when they are asked for."""

    def outline(self) -> Mapping[str, Layer]:
        """Return the same layers with shapes and dtypes, but without data, from headers alone."""
        ...


def outline(layers: Mapping[str, Layer]) -> Mapping[str, Layer]:
    """Return layers without their data, where they are read from a file; those in memory as they are.

    Where a factor of several layers may be one and the same, which no header says, it counts several
    times.
    """
    return layers.outline() if isinstance(layers, Lazy) else layers


def outlined(adapter: Adapter) -> Adapter:
    """Return an adapter whose layers have no data, where they are read from a file."""
    return replace(adapter, layers=outline(adapter.layers))


class HeaderOnlySource(TensorSource):
    """A source whose tensors have shapes but no data, so that layers can be checked unread.

    Args:
        source: Whose.
        reads_alpha: Whether alphas are read; else every one is 1.
    """

    def __init__(self, source: TensorSource, *, reads_alpha: bool = True) -> None:
        self._reads_alpha = reads_alpha
        self.name = source.name
        self.metadata = source.metadata
        self._source = source

    def keys(self) -> Sequence[str]:
        """All tensor names."""
        return self._source.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._source.shape(key)

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor."""
        return self._source.dtype(key)

    def element(self, key: str) -> Element:
        """What the numbers of one tensor are."""
        return self._source.element(key)

    def tensor(self, key: str) -> Tensor:
        """A tensor without data; one whose numbers say what a layer is, is read."""
        if key.endswith(_TOLD):
            return self._source.tensor(key)
        return shaped(self.shape(key), self.element(key))

    def number(self, key: str) -> float:
        """A number that says what a layer is."""
        return self._source.number(key) if self._reads_alpha or not key.endswith(_ALPHA) else 1.0
