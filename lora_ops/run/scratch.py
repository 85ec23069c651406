"""Memory that the jobs of a thread use one after another: new pages cost more than the arithmetic."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Scratch(threading.local):
    """Blocks of memory, each thread's own: the first that is taken is the first that was."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._taken = 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory that is filled with anything, contiguous; it is taken back with its frame."""
        size = math.prod(shape) * dtype.itemsize
        if self._taken == len(self._blocks):
            self._blocks.append(torch.empty(0, dtype=torch.uint8))
        if self._blocks[self._taken].numel() < size:
            self._blocks[self._taken] = torch.empty(size, dtype=torch.uint8)
        block = self._blocks[self._taken]
        self._taken += 1
        return block[:size].view(dtype).view(*shape)

    def give_back(self) -> None:
        """Take back what was taken last."""
        self._taken -= 1

    def free(self) -> None:
        """Let go of the calling thread's memory, at the end of the thread."""
        self._blocks.clear()

    @contextmanager
    def frame(self) -> Generator[None, None, None]:
        """Take back, at the end, what was taken within."""
        before = self._taken
        try:
            yield
        finally:
            self._taken = before


#: Of whatever thread asks.
SCRATCH = Scratch()
