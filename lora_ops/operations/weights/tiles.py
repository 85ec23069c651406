"""One tensor of the output: in tiles small enough to stay in cache, added up, rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import NonFiniteError
from ...linalg.storage import spelled
from ...report import LayerReport, Skip
from ...run.scratch import SCRATCH
from ...source import TensorSource
from .rounding import ByChance
from .step import Measured, Step
from .terms import Replacement, Rows, Stored, tile_height, tiles_of, wide

#: Takes a piece of the result: its first element, and the numbers, which may change afterwards.
Put: TypeAlias = Callable[[int, Tensor], None]


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """One tensor of the output, before it is computed.

    Attributes:
        key: Its key.
        source: The checkpoint that it begins as.
        own: Its key there.
        dtype: It is written in.
        steps: What is added to the parameters in it.
        seed: By which these are rounded up or down by chance; None: to the nearest.
    """

    key: str
    source: TensorSource
    own: str
    dtype: torch.dtype
    steps: Sequence[Step] = ()
    seed: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.source.shape(self.own)

    @property
    def is_copy(self) -> bool:
        """Whether every byte stays."""
        return not self.steps and self.dtype == self.source.dtype(self.own)


def compute(planned: Planned, put: Put) -> tuple[LayerReport | Skip, ...]:
    """Compute a tensor, piece by piece.

    Args:
        planned: Which.
        put: Takes the pieces, which lie beside each other and cover it.

    Returns:
        What is to be said of the steps, in their order.

    Raises:
        NonFiniteError: NaN or infinity in what is added up, or out of the range of the dtype.
    """
    rows = planned.shape[0] if planned.shape else 1
    found: dict[int, LayerReport | Skip] = {}
    with SCRATCH.frame():
        for number, part in _ranges(planned.steps, rows):
            if number is None:
                _convert(planned, part, put)
            else:
                found[number] = _apply(planned, planned.steps[number], part, put)
    return tuple(found[number] for number in range(len(planned.steps)))


def computed(planned: Planned) -> tuple[Tensor, tuple[LayerReport | Skip, ...]]:
    """Compute a tensor in memory; see `compute`. One that stays is the source's own.

    Returns:
        The tensor, and what is to be said of the steps.
    """
    if planned.is_copy:
        return planned.source.tensor(planned.own), ()
    result = torch.empty(planned.shape, dtype=planned.dtype)
    flat = result.view(-1)

    def put(start: int, piece: Tensor) -> None:
        flat[start : start + piece.numel()] = piece.reshape(-1)

    return result, compute(planned, put)


def _ranges(steps: Sequence[Step], rows: int) -> Iterator[tuple[int | None, tuple[int, int]]]:
    """The rows of each step, by its number, and those of none, which stay as they are."""
    at = 0
    places = [(step.parameter.rows or (0, rows), number) for number, step in enumerate(steps)]
    for (first, last), number in sorted(places):
        if at < first:
            yield None, (at, first)
        yield number, (first, last)
        at = last
    if at < rows:
        yield None, (at, rows)


class _Tiles:
    """Some rows of the tensor that the result begins as, tile by tile, and where they go."""

    def __init__(
        self, planned: Planned, rows: tuple[int, int], put: Put, step: Step | None = None
    ) -> None:
        stored = planned.source.dtype(planned.own)
        self.dtype = wide(stored, planned.dtype)
        self.weight = Stored(planned.source, planned.own, self.dtype, rows)
        self.count, self.columns = self.weight.shape
        self.height = tile_height(self.weight.shape)
        self._planned, self._put, self._first = planned, put, rows[0]
        self._rounded = SCRATCH.take((self.height, self.columns), planned.dtype)
        self._chance: ByChance | None = None
        if step is not None and planned.seed is not None:
            self._chance = ByChance.of(planned.seed, planned.dtype, *step.place)

    def __iter__(self) -> Iterator[slice]:
        return tiles_of(self.weight.shape)

    def memory(self) -> Tensor:
        """Memory for a tile in the dtype of the computation."""
        return SCRATCH.take((self.height, self.columns), self.dtype)

    def round(self, tile: Tensor, part: slice) -> Tensor:
        """The numbers of some rows in the dtype of the result."""
        if self._chance is not None:
            return self._chance.round(tile, part.start)
        return self._rounded[: len(tile)].copy_(tile)

    def put(self, part: slice, tile: Tensor) -> None:
        """Hand on a tile of the result."""
        self._put((self._first + part.start) * self.columns, tile)

    def keep(self, part: slice) -> None:
        """Hand on what is stored. NaN and infinity may stay, not arise."""
        tile = self.weight.stored(part)
        if tile.dtype != self._planned.dtype:
            before, tile = tile, self.round(tile, part)
            before = before.to(self.dtype)
            lost = before.isfinite() & ~tile.to(self.dtype).isfinite()
            if bool(lost.any()):
                what = f"tensor `{self._planned.key}`"
                raise _overflow(what, before[lost], self._planned.dtype)
        self.put(part, tile)


def _convert(planned: Planned, rows: tuple[int, int], put: Put) -> None:
    """Write rows that nothing changes."""
    tiles = _Tiles(planned, rows, put)
    for part in tiles:
        tiles.keep(part)


def _apply(planned: Planned, step: Step, rows: tuple[int, int], put: Put) -> LayerReport | Skip:
    """Write the rows of a parameter, with what a step adds to them."""
    tiles = _Tiles(planned, rows, put, step)
    change = step.change(tiles.weight, tiles.dtype)
    memory = [tiles.memory() for _ in range(3)]
    measured: list[tuple[float, float, float, float]] = []
    seen, is_changed = 0, False
    for number, part in enumerate(tiles):
        d, w, x = (one[: part.stop - part.start] for one in memory)
        if is_changed and number % step.every:
            tiles.put(part, _plain(tiles, step, change, part, w, d, x))
            continue
        seen += d.numel()
        w = tiles.weight.rows(part, w)
        result: Tensor | None = None
        if isinstance(change, Replacement):
            result = change.rows(part, x)
            torch.sub(result, w, out=d)
        else:
            d = change.rows(part, d)
        norm = _norm(d)
        if norm == 0:
            tiles.keep(part)  # a minus zero plus a zero would be a zero
            measured.append((0.0, 0.0, 0.0, _norm(w)))
            continue
        is_changed = True
        rounded = tiles.round(torch.add(w, d, out=x) if result is None else result, part)
        moved = _norm(x.copy_(rounded).sub_(w))
        lost = _norm(x.sub_(d))
        if not math.isfinite(lost):
            raise _fault(step, w, d, planned.dtype)
        tiles.put(part, rounded)
        measured.append((norm, moved, lost, _norm(w)))
    share = seen / max(1, tiles.count * tiles.columns)
    return step.report(change, Measured.joined(measured, share))


def _plain(
    tiles: _Tiles, step: Step, change: Rows, part: slice, w: Tensor, d: Tensor, x: Tensor
) -> Tensor:
    """Compute a tile that is not measured; only whether its numbers fit is asked."""
    if isinstance(change, Replacement):
        result = change.rows(part, x)
    else:
        result = torch.add(tiles.weight.rows(part, w), change.rows(part, d), out=x)
    rounded = tiles.round(result, part)
    low, high = (float(one) for one in torch.aminmax(result))
    # One that is a little larger than the largest may be rounded to it.
    if not max(-low, high) <= torch.finfo(rounded.dtype).max and not bool(
        rounded.float().isfinite().all()
    ):
        w = tiles.weight.rows(part, w)
        raise _fault(step, w, torch.sub(result, w, out=d), rounded.dtype)
    return rounded


def _fault(step: Step, w: Tensor, d: Tensor, dtype: torch.dtype) -> NonFiniteError:
    """The error for a tile that is not finite."""
    what = f"layer `{step.parameter.target}`"
    return step.not_finite(w, d) or _overflow(what, w + d, dtype)


def _norm(tile: Tensor) -> float:
    """Frobenius norm of a contiguous tile; a BLAS product reads it faster than a reduction does."""
    flat = tile.view(-1)
    return math.sqrt(float(torch.dot(flat, flat)))


def _overflow(what: str, numbers: Tensor, dtype: torch.dtype) -> NonFiniteError:
    return NonFiniteError(
        f"{what}: values up to {float(numbers.abs().max()):.3g} do not fit {spelled(dtype)}, which "
        f"ends at {torch.finfo(dtype).max:.5g}; use `dtype=` bf16 or fp32, or less strength"
    )
