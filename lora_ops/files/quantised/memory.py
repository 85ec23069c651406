"""Passing over the numbers of a decoded weight in pieces."""

from __future__ import annotations

import torch
from torch import Tensor

#: Numbers that stay in the cache from one step to the next; so few that torch does not divide them among threads,
#: which on a busy machine wait for each other longer than they work.
PIECE = 1 << 15


def rounded(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Round contiguous float32, in place, to numbers of another dtype; return it."""
    if dtype != torch.float32:
        for piece in numbers.view(-1).split(PIECE):
            piece.copy_(piece.to(dtype))
    return numbers
