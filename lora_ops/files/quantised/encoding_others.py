"""Encoding as bitsandbytes has integers of 8 bits, and torchao its tensors, so that files stay stored so."""

from __future__ import annotations

import torch
from torch import Tensor

from .bitsandbytes import STEP
from .encoding import Integers, Rows, ScaledFloat
from .memory import rounded


class SizedRows(Rows):
    """Integers of 8 bits, and beside them the largest number of each row, which stands for 127."""

    def scaled(self, rows: Tensor, first: int) -> Tensor:
        """The rows' largest numbers."""
        sizes = rows.abs().amax(dim=1, keepdim=True)
        self.check(sizes)
        self._scales[first : first + len(rows)] = sizes
        return sizes

    def divided(self, rows: Tensor, scales: Tensor) -> Tensor:
        """By way of the reciprocal, as the program does; zeros where a row holds nothing."""
        times = (127 / scales).masked_fill_(scales == 0, 0.0)
        return (rows * times).nan_to_num_(0.0).clamp_(-127, 127)

    def multiplied(self, codes: Tensor, scales: Tensor) -> Tensor:
        """With the reciprocal of 127, as the program has it."""
        return super().multiplied(codes, scales).mul_(STEP)

    def parts(self) -> dict[str, Tensor]:
        """The rows' largest numbers."""
        return {"SCB": self._scales}


class RoundedFloat(ScaledFloat):
    """Float8 of torchao, whose numbers are rounded to another dtype when they are decoded.

    Args:
        key: See `ScaledFloat`, as the next four.
        shape: See there.
        dtype: See there.
        blocks: See there.
        scales: See there.
        numbers: What the program rounds the numbers to.
    """

    def __init__(
        self,
        key: str,
        shape: tuple[int, int],
        dtype: torch.dtype,
        blocks: tuple[int, int],
        scales: torch.dtype,
        numbers: torch.dtype,
    ) -> None:
        super().__init__(key, shape, dtype, blocks, scales)
        self._numbers = numbers

    def multiplied(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The products, rounded."""
        return rounded(super().multiplied(codes, scales), self._numbers)


class RoundedInteger(Integers, RoundedFloat):
    """Integers of torchao, of as many bits as it was asked for, in 8 bits each; no zero points.

    Args:
        key: See `RoundedFloat`, as the next five.
        shape: See there.
        dtype: See there.
        blocks: See there.
        scales: See there.
        numbers: See there.
        limits: The least and the largest integer.
    """

    def __init__(
        self,
        key: str,
        shape: tuple[int, int],
        dtype: torch.dtype,
        blocks: tuple[int, int],
        scales: torch.dtype,
        numbers: torch.dtype,
        limits: tuple[int, int],
    ) -> None:
        super().__init__(key, shape, dtype, blocks, scales, numbers)
        self._ends = limits
        self._limit = (limits[1] - limits[0]) / 2  # as the program has it: between both

    def divided(self, rows: Tensor, scales: Tensor) -> Tensor:
        """By way of the reciprocal, as the program does."""
        return (rows * (1 / scales)).clamp_(*self._ends)
