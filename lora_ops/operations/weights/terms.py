"""Terms: what yields rows of a weight, or of a change of one, a tile at a time.

All are matrices as the output stores the weight: rows are axis 0 there, the kernel lies on the other.
A term belongs to one job: it remembers its last tile, so that whoever asks again has it for nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...adapters.layers import Convention, LoraLayer
from ...run.scratch import SCRATCH
from ...source import TensorSource
from .shares import Share


class Rows(Protocol):
    """Anything that yields rows of a matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole matrix."""
        ...

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """Compute some rows.

        Args:
            part: Which.
            out: (rows, columns), memory for them in the dtype of the computation.

        Returns:
            The rows: in `out`, or in memory of the term's own, which is not to be written into.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Replacement:
    """A weight that takes the place of another: a change that is given as what comes of it."""

    weight: Rows

    def rounded(self, part: slice, out: Tensor) -> bool:
        """Compute rows as they are written, where the weight can; see `Between`."""
        return isinstance(self.weight, Between) and self.weight.rounded(part, out)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight."""
        return self.weight.shape

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """See `Rows`: those of the weight."""
        return self.weight.rows(part, out)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Shape of a weight as `matrix` gives it."""
    return (shape[0] if shape else 1), math.prod(shape[1:])


# Elements: a method has a dozen tiles at work in each thread, which shall stay in cache together.
TILE = 1 << 18


def tile_height(shape: tuple[int, int]) -> int:
    """Rows of a tile of such a matrix."""
    return min(shape[0], max(1, TILE // max(1, shape[1])))


def tiles_of(shape: tuple[int, int]) -> Iterator[slice]:
    """Which rows each tile has, in order."""
    height = tile_height(shape)
    for start in range(0, shape[0], max(1, height)):
        yield slice(start, min(start + height, shape[0]))


def matrix(tensor: Tensor) -> Tensor:
    """A weight as (out, in), the kernel on the input side; a vector as a column."""
    return tensor.reshape(matrix_shape(tensor.shape))


def wide(*dtypes: torch.dtype) -> torch.dtype:
    """What to compute in: float32, or float64 where that is stored."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


class _Once(threading.local):
    """What a thread has read whole; None where it reads all anew."""

    tensors: dict[tuple[int, str], Tensor] | None = None


_ONCE = _Once()


@contextmanager
def read_once() -> Generator[None, None, None]:
    """Within this, the calling thread reads what is decoded as a whole once, however often it is passed over."""
    _ONCE.tensors = {}
    try:
        yield
    finally:
        _ONCE.tensors = None


def _whole(source: TensorSource, key: str) -> Tensor:
    held, place = _ONCE.tensors, (id(source), key)
    if held is None:
        return source.tensor(key)
    if place not in held:
        held[place] = source.tensor(key)
    return held[place]


class Stored:
    """Rows of a tensor that a source holds.

    Args:
        source: Which.
        key: Of the tensor.
        dtype: To compute in.
        rows: Half-open range of the tensor's rows; None for all of them.
        turned: Whether the output stores it the other way round.
    """

    def __init__(
        self,
        source: TensorSource,
        key: str,
        dtype: torch.dtype,
        rows: tuple[int, int] | None = None,
        *,
        turned: bool = False,
    ) -> None:
        self.source, self.key = source, key
        self._stored = source.dtype(key)
        count, columns = matrix_shape(source.shape(key))
        first, last = rows or (0, count)
        self._first, self.shape = first, (last - first, columns)
        self._tensor: Tensor | None = None
        if turned or not source.has_ranges(key):
            whole = matrix(_whole(source, key))[first:last]
            self._tensor = whole.mT if turned else whole
            self.shape = (self._tensor.shape[0], self._tensor.shape[1])
        size = (tile_height(self.shape), self.shape[1])
        # All that it ever takes, at once: others take and give back between its tiles.
        self._memory = SCRATCH.take(size, dtype)
        self._buffer = SCRATCH.take(size if self._tensor is None else (0, 0), self._stored)
        self._last: tuple[slice, Tensor] | None = None
        self._read: tuple[int, int] | None = None

    def stored(self, part: slice) -> Tensor:
        """Read some rows in the dtype that they are stored in; not to be written into.

        Of a part with a step all rows are read, and remembered as any other part.
        """
        if self._tensor is not None:
            return self._tensor[part]
        memory = self._buffer[: part.stop - part.start]
        if self._read != (part.start, part.stop):
            self._read = None  # should reading fail
            self.source.read_into(self.key, (self._first + part.start) * self.shape[1], memory)
            self._read = part.start, part.stop
        return memory[:: part.step]

    def whole(self) -> Tensor:
        """Read all rows, as `stored` does."""
        if self._tensor is None:
            self._tensor = torch.empty(self.shape, dtype=self._stored)
            self.source.read_into(self.key, self._first * self.shape[1], self._tensor)
        return self._tensor

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """See `Rows`."""
        if self._last is None or self._last[0] != part:
            self._last = part, self._memory[: len(out)].copy_(self.stored(part))
        return self._last[1]


@dataclass(frozen=True, slots=True, eq=False)
class Between:
    """Rows on the way from one tensor to another: a share of the second, the rest of the first."""

    one: Stored
    other: Stored
    share: float

    @property
    def shape(self) -> tuple[int, int]:
        """Of both."""
        return self.one.shape

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """See `Rows`; the part may have a step."""
        memory = SCRATCH.take(out.shape, out.dtype)
        one, other = self.one.rows(part, memory), self.other.rows(part, memory)
        torch.lerp(one, other, self.share, out=out)
        SCRATCH.give_back()
        return out

    def rounded(self, part: slice, out: Tensor) -> bool:
        """Compute rows in the dtype of the result, where both are stored in it.

        Of 16 bits torch interpolates in float32 and rounds once: what `rows` gives, rounded.

        Returns:
            Whether it did.
        """
        if out.dtype not in (torch.float16, torch.bfloat16):
            return False
        one, other = self.one.stored(part), self.other.stored(part)
        if one.dtype != out.dtype or other.dtype != out.dtype:
            return False
        torch.lerp(one, other, self.share, out=out)
        return True


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """What layers of adapters add, together: up @ down, and dense parts beside it.

    Attributes:
        up: (out, r), strengths and scales included.
        down: (r, in).
        whole: (out, in), or None.
        rank: Of all layers together.
    """

    up: Tensor
    down: Tensor
    whole: Tensor | None
    rank: int

    @staticmethod
    def of(
        shares: Sequence[Share], base: Tensor | None, dtype: torch.dtype, convention: Convention
    ) -> Delta:
        """Read layers and join them; the products of a LoRA's factors are not formed.

        Args:
            shares: The layers.
            base: What layers that are made from the weight are made from: as the model has it.
            dtype: What to compute in.
            convention: Whose.
        """
        ups: list[Tensor] = []
        downs: list[Tensor] = []
        whole: Tensor | None = None
        rank = 0
        for share, seat in ((one, one.seat) for one in shares if one.seat is not None):
            layer = share.read()
            rank += layer.rank
            if isinstance(layer, LoraLayer) and dtype == torch.float32 and not seat.is_flat:
                up, down = layer.factors(share.strength)
                ups.append(seat.spread(up))
                downs.append(down)
                continue
            if layer.needs_base and base is not None:
                own = seat.taken(base)
                change = matrix(layer.change(own, share.strength, dtype, convention))
            else:
                change = matrix(layer.delta(dtype)) * share.strength
            change = seat.spread(change)
            whole = change if whole is None else whole.add_(change)
        if whole is not None:  # the product may have no columns, but must have a shape
            ups.append(whole.new_empty(len(whole), 0))
            downs.append(whole.new_empty(0, whole.shape[1]))
        return Delta(torch.cat(ups, 1), torch.cat(downs), whole, rank)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the change."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def transposed(self) -> Delta:
        """The same for a weight that is stored (in, out)."""
        whole = None if self.whole is None else self.whole.mT
        return Delta(self.down.mT, self.up.mT, whole, self.rank)

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """See `Rows`."""
        torch.mm(self.up[part], self.down, out=out)
        return out if self.whole is None else out.add_(self.whole[part])
