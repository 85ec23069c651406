"""What all weights and biases in Nunchaku's files have in common; and those that are only fused."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ....source import storage_name
from ....spacing import spacing
from ..headers import Headers
from ..weight import Parts, QuantisedWeight

# In trials, no number was further from itself than 0.54 of its width in int4, 0.61 in nvfp4.
_REACH = 1.25


def halves() -> tuple[torch.dtype, torch.dtype]:
    """In what the numbers beside codes may be stored."""
    return torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Nunchaku(QuantisedWeight):
    """A weight or a bias that is in a layer of Nunchaku's."""

    #: Fused and rescaled as they are, one cannot be changed where it lies.
    stays: ClassVar[bool] = False

    @abstractmethod
    def widths(self, parts: Parts, first: int, last: int) -> Tensor:
        """How far apart storable numbers lie in the rows from one to another: float64, (rows, columns)."""

    def steps(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """Those of the place, whatever the number: what is added to codes moves them."""
        columns, count = self.matrix[1], values.numel()
        first, last = start // columns, -(-(start + count) // columns)
        found = self.widths(parts, first, last).reshape(-1)[start - first * columns :][:count]
        found = found.view(values.shape).to(values.device)
        return found.masked_fill(~values.isfinite(), torch.nan)

    def reach(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """More, as floats have wider gaps on one side, and scales and the product's factors are rounded, too."""
        return _REACH * self.steps(parts, values, start) + spacing(values, torch.float32)


@dataclass(frozen=True)
class Rows(Nunchaku):
    """Rows of a matrix that is fused, and stored as it is.

    Attributes:
        first: The first of them.
        among: How many rows the matrix has.
        dtype: Of the matrix.
    """

    first: int
    among: int
    dtype: torch.dtype

    @classmethod
    def of(cls, headers: Headers, key: str, names: Sequence[str]) -> Iterator[Rows]:
        """All weights of one matrix.

        Args:
            headers: Of the file.
            key: Of the matrix.
            names: Of the weights, as their rows follow each other.

        Raises:
            QuantisedError: It is none of so many equal weights.
        """
        shape, dtype = headers.shape(key), headers.dtype(key)
        if len(shape) != 2 or shape[0] % len(names):
            raise headers.damaged(
                key, f"it has the shape {list(shape)}, not of {len(names)} layers"
            )
        rows, storage = shape[0] // len(names), f"{storage_name(dtype)}, fused"
        for place, name in enumerate(names):
            own = (place * rows, shape[0], dtype)
            yield cls(name, (rows, shape[1]), storage, {"codes": key}, *own)

    def stored_size(self, size_of: Callable[[str], int]) -> int:
        """Of its rows."""
        return super().stored_size(size_of) * self.shape[0] // self.among

    @property
    def roles_of_steps(self) -> tuple[str, ...]:
        """The numbers themselves."""
        return ("codes",)

    def decode(self, parts: Parts) -> Tensor:
        """The numbers."""
        return parts["codes"][self.first :][: self.shape[0]].to(torch.float32, copy=True)

    def widths(self, parts: Parts, first: int, last: int) -> Tensor:
        """Those of the dtype."""
        return spacing(parts["codes"][self.first + first : self.first + last], self.dtype)
