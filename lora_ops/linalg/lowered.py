"""A matrix in as few bits as are enough, to be multiplied with thin blocks of rows: what a search for directions needs."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .precision import whole_product

# Numbers that are rounded at a time: of fewer the calls take longer than the work.
_TILE = 1 << 19
# Columns of a turned float32 matrix that are multiplied at a time: a fifth quicker than all of them.
_WIDE = 512
# What rounding to 8 bits may add to the squared norm, as a share of it. Of normal numbers it is 1e-4; where a
# row has a few numbers far above the others it is more.
_COARSEST = 5e-4


@runtime_checkable
class Lowered(Protocol):
    """A matrix (out, in) in fewer bits, or as it is.

    Attributes:
        dtype: Of its numbers: float32 is the matrix itself.
        blur: What rounding makes of the squared length of a row's image, as a share of it, at most about.
        is_turned: Whether columns of images lie together in memory, not rows.
    """

    dtype: torch.dtype
    blur: float
    is_turned: bool

    def times(self, rows: Tensor) -> Tensor:
        """Return `rows @ matrix` for rows (k, out), float32."""
        ...

    def image(self, rows: Tensor) -> Tensor:
        """Return `rows @ matrix.mT` for rows (k, in), float32."""
        ...


def lowered(matrix: Tensor, total: float, dtypes: tuple[torch.dtype, ...]) -> Lowered | None:
    """Return a matrix (out, in), float32, in the first of some dtypes that is fine enough for it.

    Args:
        matrix: Rows or columns of it lie together in memory.
        total: Its squared Frobenius norm.
        dtypes: Of int8, bfloat16 and float32.
    """
    for dtype in dtypes:
        if dtype != torch.int8:
            return _Float(matrix.to(dtype))
        found = _Int8(matrix)
        if found.noise <= _COARSEST * total:
            return found
    return None


class _Float:
    def __init__(self, matrix: Tensor) -> None:
        self.dtype = matrix.dtype
        self.blur = 3e-4 if self.dtype == torch.bfloat16 else 0.0
        self._matrix = matrix
        # In the order in which products come out of it, which depends on that of the matrix.
        self.is_turned = self.dtype != torch.float32 and self._matrix.stride(-1) == 1

    def times(self, rows: Tensor) -> Tensor:
        return through(rows.to(self.dtype), self._matrix).float()

    def image(self, rows: Tensor) -> Tensor:
        return through(rows.to(self.dtype), self._matrix.mT).float()


class _Int8:
    """Each row, or column, as whole numbers up to 127 of a step of its own.

    Attributes:
        noise: What rounding adds to the squared norm: a twelfth of the square of the step, for each number.
    """

    blur = 2e-3
    is_turned = False

    def __init__(self, matrix: Tensor) -> None:
        self.dtype = torch.int8
        self._is_mirrored = matrix.stride(-1) != 1
        rows = matrix.mT if self._is_mirrored else matrix
        self._codes = rows.new_empty(rows.shape, dtype=torch.int8)
        self._steps = rows.new_empty(len(rows))
        height = max(1, _TILE // rows.shape[1])
        room = rows.new_empty((height, rows.shape[1]))
        for begin in range(0, len(rows), height):
            part = rows[begin : begin + height]
            codes, steps = _coded(part, room[: len(part)])
            self._codes[begin : begin + height].copy_(codes)
            self._steps[begin : begin + height] = steps[:, 0]
        self.noise = float(self._steps.double().square().sum()) * rows.shape[1] / 12

    def times(self, rows: Tensor) -> Tensor:
        return self._across(rows) if self._is_mirrored else self._along(rows)

    def image(self, rows: Tensor) -> Tensor:
        return self._along(rows) if self._is_mirrored else self._across(rows)

    def _along(self, rows: Tensor) -> Tensor:
        codes, steps = _coded(rows * self._steps)
        return whole_product(codes.to(torch.int8), self._codes) * steps

    def _across(self, rows: Tensor) -> Tensor:
        codes, steps = _coded(rows)
        found = whole_product(codes.to(torch.int8), self._codes.mT)
        return (found * steps).mul_(self._steps)


def _coded(rows: Tensor, room: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return whole numbers up to 127, float32, and the step (n, 1) of each row."""
    # A tenth of the time of a norm, and less than that of `abs`, which writes.
    most = torch.maximum(rows.amax(-1, keepdim=True), -rows.amin(-1, keepdim=True))
    most.clamp_(min=torch.finfo(rows.dtype).tiny)
    return torch.mul(rows, 127 / most, out=room).round_(), most / 127


def through(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return `rows @ matrix`, as is quickest for the order in which the matrix lies in memory.

    Args:
        rows: (k, out), of the matrix's dtype.
        matrix: (out, in), float32 or bfloat16; rows or columns of it lie together.
    """
    if matrix.stride(-1) == 1:
        return rows @ matrix
    if matrix.dtype != torch.float32:
        return (matrix.mT @ rows.mT).mT
    found = rows.new_empty((len(rows), matrix.shape[1]))
    for begin in range(0, matrix.shape[1], _WIDE):
        part = slice(begin, begin + _WIDE)
        torch.mm(rows, matrix[:, part], out=found[:, part])
    return found
