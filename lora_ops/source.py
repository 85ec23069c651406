"""TensorSource: anything that can name its tensors and hand out one at a time.

A checkpoint file, a sharded index, a folder, a dict of tensors: every operation reads through this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class TensorSource(Protocol):
    """Names, shapes and dtypes known up front; data read one tensor at a time."""

    @property
    def name(self) -> str:
        """What messages call it: a file's path, as the user gave it."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's own string map; empty where it has none."""
        ...

    def keys(self) -> Sequence[str]:
        """All tensor names, in the order in which reading them is cheapest."""
        ...

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading its data."""
        ...

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor as stored, without reading its data."""
        ...

    def tensor(self, key: str) -> Tensor:
        """Read one tensor, on the CPU, in its stored dtype. The caller owns the result."""
        ...


class DictSource:
    """A dict of tensors as a source: a state dict, a test's tiny model.

    The tensors are handed out as they are, not copied; operations never write into them.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
        name: str = "tensors",
    ) -> None:
        self.name = name
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self._tensors = dict(tensors)

    def keys(self) -> Sequence[str]:
        """All tensor names, in the dict's order."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor."""
        return self._tensors[key].dtype

    def tensor(self, key: str) -> Tensor:
        """The tensor itself, not a copy."""
        return self._tensors[key]
