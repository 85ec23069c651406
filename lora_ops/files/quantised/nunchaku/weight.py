"""What all weights and biases in Nunchaku's layers have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ....spacing import spacing
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
