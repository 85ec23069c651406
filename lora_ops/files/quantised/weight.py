"""A weight as a quantiser stores it: which tensors of the file it is made of, and how it is decoded.

A scheme is a class of `QuantisedWeight` and a function that makes it from headers; `schemes.py` is their
table. Nearly all are `Scaled`: codes, widened to float32, times scales of blocks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ...spacing import spacing

#: The tensors that a weight is decoded from, by what they are for.
Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class QuantisedWeight(ABC):
    """One weight, known from headers.

    Attributes:
        key: What the weight is called.
        shape: Of the numbers that it stands for.
        storage: What people call the way in which it is stored: `nvfp4`, `Q4_K`.
        parts: Keys of the tensors that it is decoded from, by what they are for; `codes` is first.
        beside: Keys that belong to the layer and tell nothing of the weight, such as scales of inputs.
    """

    key: str
    shape: tuple[int, ...]
    storage: str
    parts: Mapping[str, str]
    beside: tuple[str, ...] = field(default=(), kw_only=True)

    #: Whether a file can have it as it is stored here, beside weights that changed.
    stays: ClassVar[bool] = True

    @property
    def stored(self) -> str:
        """The tensor in whose place of the file it is."""
        return self.parts["codes"]

    def stored_size(self, size_of: Callable[[str], int]) -> int:
        """Bytes in the file, those of the scales included.

        Args:
            size_of: Gives those of a tensor.
        """
        return sum(map(size_of, self.parts.values()))

    @property
    def layer(self) -> str:
        """The layer that has the weight."""
        return self.key.removesuffix(".weight")

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns: the last axis, and all others before it."""
        return math.prod(self.shape[:-1]), self.shape[-1] if self.shape else 1

    @property
    def roles_of_steps(self) -> tuple[str, ...]:
        """The parts that `steps` asks for."""
        return tuple(role for role in self.parts if role != "codes")

    def check(self) -> None:  # noqa: B027  most need nothing
        """Raise a `QuantisedError` if what decodes it is not installed."""

    @abstractmethod
    def decode(self, parts: Parts) -> Tensor:
        """Return the numbers as fresh float32 of `shape`, as exactly as they are stored."""

    @abstractmethod
    def steps(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """Return how far apart storable numbers lie around values; see `TensorSource.grid`."""

    def reach(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """Return how far apart two programs may have stored one number; see `TensorSource.reach`.

        Each rounds it to the nearest, and decoding rounds it to float32.
        """
        return self.steps(parts, values, start) + spacing(values, torch.float32)


@dataclass(frozen=True)
class Plain:
    """A weight that is stored as it is, although tensors stand beside it: they mean nothing.

    Attributes:
        key: What the weight is called.
        beside: Keys that belong to the layer.
        stored: What the file calls it; empty where that is its key.
    """

    key: str
    beside: tuple[str, ...]
    stored: str = ""

    @property
    def layer(self) -> str:
        """The layer that has the weight."""
        return self.key.removesuffix(".weight")


@dataclass(frozen=True)
class Scaled(QuantisedWeight):
    """Codes times scales, each of a block of as many rows and columns as the codes have per scale.

    Attributes:
        padded: Rows and columns of the codes, which may be more than the weight has.
    """

    padded: tuple[int, int]

    @abstractmethod
    def codes(self, parts: Parts) -> Tensor:
        """The codes as fresh float32, of the shape `padded`."""

    @abstractmethod
    def scales(self, parts: Parts) -> Tensor:
        """The scales as float32, (blocks of rows, blocks of columns)."""

    @abstractmethod
    def gaps(self, numbers: Tensor) -> Tensor:
        """How far apart codes lie around numbers, both float64."""

    def decode(self, parts: Parts) -> Tensor:
        """The products, without what was padded."""
        codes, scales = self.codes(parts), self.scales(parts)
        (rows, columns), (high, wide) = self.padded, scales.shape
        blocks = codes.view(high, rows // high, wide, columns // wide)
        blocks.mul_(scales.view(high, 1, wide, 1))
        height, width = self.matrix
        return codes[:height, :width].contiguous().view(self.shape)

    def steps(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """Those of the codes, times the scale of the place."""
        scales = self.run(self.scales(parts), start, values)
        found = self.gaps(values.double() / scales) * scales
        return found.masked_fill_((scales == 0) & values.isfinite(), 0.0)

    def run(self, scales: Tensor, start: int, values: Tensor) -> Tensor:
        """The scale of each place of a run of the weight, float64, of the shape of its values."""
        columns, count = self.matrix[1], values.numel()
        first, last = start // columns, -(-(start + count) // columns)
        rows = torch.arange(first, last) // (self.padded[0] // scales.shape[0])
        spread = scales.double().abs()[rows]
        spread = spread.repeat_interleave(self.padded[1] // scales.shape[1], dim=1)[:, :columns]
        found = spread.reshape(-1)[start - first * columns :][:count]
        return found.view(values.shape).to(values.device)
