"""Adapters without their data: what their layers are is known from headers alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..source import TensorSource

# Endings of tensors with one or a few numbers that say what a layer is: they are read.
_TOLD = (".alpha", ".on_input", ".reshape_weight")


class Outline(TensorSource):
    """A source whose tensors have shapes but no data, so that layers can be checked unread."""

    def __init__(self, source: TensorSource) -> None:
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

    def tensor(self, key: str) -> Tensor:
        """A tensor without data; one whose numbers say what a layer is, is read."""
        if key.endswith(_TOLD):
            return self._source.tensor(key)
        return torch.empty(self.shape(key), dtype=self.dtype(key), device="meta")
