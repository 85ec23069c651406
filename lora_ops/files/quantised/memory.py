"""Memory of decoded weights: where their numbers are put, and how they are passed over in pieces."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Numbers that stay in the cache from one step to the next.
PIECE = 1 << 17


def fresh(*shape: int) -> Tensor:
    """Return memory for float32, with nothing in it yet.

    It is numpy's, which asks the system for huge pages: to touch as much of torch's own for the first time takes
    longer than most decoding.
    """
    return torch.from_numpy(np.empty(shape, np.float32))


def rounded(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Round contiguous float32, in place, to numbers of another dtype; return it."""
    if dtype != torch.float32:
        for piece in numbers.view(-1).split(PIECE):
            piece.copy_(piece.to(dtype))
    return numbers
