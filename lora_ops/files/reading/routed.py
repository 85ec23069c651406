"""A source whose tensors are those of other sources, by other names."""

from __future__ import annotations

import io
from abc import abstractmethod

import torch
from torch import Tensor

from ...elements import Element
from ..base import FileSource


class RoutedSource(FileSource):
    """A `TensorSource` that asks another one for everything about a tensor."""

    @abstractmethod
    def route(self, key: str) -> tuple[FileSource, str]:
        """The source behind a key, and its own key for it.

        Raises:
            KeyError: There is no such tensor.
        """

    def own_key(self, key: str) -> str:
        """The tensor's name in the file itself, without what a folder puts in front."""
        source, inner = self.route(key)
        return source.own_key(inner)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor, from its header."""
        source, inner = self.route(key)
        return source.shape(inner)

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor."""
        source, inner = self.route(key)
        return source.dtype(inner)

    def result_dtype(self, key: str) -> torch.dtype:
        """Dtype of what is made of one tensor."""
        source, inner = self.route(key)
        return source.result_dtype(inner)

    def element(self, key: str) -> Element:
        """What the numbers of one tensor are."""
        source, inner = self.route(key)
        return source.element(inner)

    def result_element(self, key: str) -> Element:
        """What the numbers are of what is made of one tensor."""
        source, inner = self.route(key)
        return source.result_element(inner)

    def numbers(self, key: str) -> list[float]:
        """Read a tensor of a few numbers."""
        source, inner = self.route(key)
        return source.numbers(inner)

    def storage(self, key: str) -> str:
        """What people call the way in which a tensor is stored."""
        source, inner = self.route(key)
        return source.storage(inner)

    def stored_size(self, key: str) -> int:
        """Bytes that a tensor takes where it is stored."""
        source, inner = self.route(key)
        return source.stored_size(inner)

    def grid(self, key: str, values: Tensor, start: int = 0) -> Tensor:
        """How far apart the numbers that the storage can hold lie."""
        source, inner = self.route(key)
        return source.grid(inner, values, start)

    def reach(self, key: str, values: Tensor, start: int = 0) -> Tensor:
        """How far apart two programs may have stored one number."""
        source, inner = self.route(key)
        return source.reach(inner, values, start)

    def tensor(self, key: str) -> Tensor:
        """Read one tensor."""
        source, inner = self.route(key)
        return source.tensor(inner)

    def makes(self, key: str) -> bool:
        """Whether reading makes a tensor anew."""
        source, inner = self.route(key)
        return source.makes(inner)

    def read_into(self, key: str, start: int, out: Tensor) -> None:
        """Fill a buffer with a run of a tensor's numbers."""
        source, inner = self.route(key)
        source.read_into(inner, start, out)

    def has_ranges(self, key: str) -> bool:
        """Whether a piece costs no more than that piece."""
        source, inner = self.route(key)
        return source.has_ranges(inner)

    def copy_into(self, key: str, file: io.FileIO, offset: int) -> None:
        """Write the bytes of a tensor into an open file; see `FileSource.copy_into`."""
        source, inner = self.route(key)
        source.copy_into(inner, file, offset)
