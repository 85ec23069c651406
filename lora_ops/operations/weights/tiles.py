"""One tensor of the output: in tiles small enough to stay in cache, added up, rounded once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...elements import ELEMENTS, Element
from ...errors import NonFiniteError
from ...files.quantised.encoding import Encoder
from ...linalg.storage import spelled
from ...report import LayerReport, Skip
from ...run.scratch import SCRATCH
from ...source import TensorSource
from .rounding import ByChance
from .step import Measured, Put, Step
from .storing import Storing
from .terms import Replacement, Stored, read_once, tile_height, tiles_of, wide

# Elements that a sample of a weight has at least.
_SAMPLE = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """One tensor of the output, before it is computed.

    Attributes:
        key: Its key.
        source: The checkpoint that it begins as.
        own: Its key there.
        element: What its numbers are written as.
        steps: What is added to the parameters in it.
        seed: By which these, or all of what is stored without any, are rounded by chance; None: to the
            nearest.
        storing: How it is written with scales, of which `element` is the codes'; None: as numbers.
    """

    key: str
    source: TensorSource
    own: str
    element: Element
    steps: Sequence[Step] = ()
    seed: int | None = None
    storing: Storing | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.source.shape(self.own)

    @property
    def is_copy(self) -> bool:
        """Whether every byte stays."""
        is_number = self.storing is None and self.element == self.source.element(self.own)
        return is_number and not self.steps


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
    looks = planned.storing is not None and planned.storing.looks
    found: dict[int, LayerReport | Skip] = {}
    with SCRATCH.frame(), read_once() if looks else nullcontext():
        encoder = _encoder(planned)
        for number, tiles in _parts(planned, put, encoder):
            found[number] = _apply(planned, planned.steps[number], tiles)
    reports = tuple(found[number] for number in range(len(planned.steps)))
    if planned.storing is None or encoder is None:
        return reports
    for key, part in planned.storing.beside(encoder):
        put(0, part, beside=key)
    return (*reports, planned.storing.report(encoder))


def _encoder(planned: Planned) -> Encoder | None:
    """What encodes the tensor; it has seen all of it where it must."""
    if planned.storing is None:
        return None
    encoder = planned.storing.encoder()

    def look(start: int, piece: Tensor, /, beside: str = "") -> None:
        encoder.look(piece, start // max(1, piece.shape[-1]))

    if not encoder.looks:
        return encoder
    numbers = replace(planned, element=ELEMENTS["F32"], seed=None, storing=None)
    with SCRATCH.frame():
        for number, tiles in _parts(numbers, look, None):
            changed = _Changed(tiles, planned.steps[number])
            for part in tiles:  # nothing is measured: that is done as it is encoded
                changed.put(part, changed.compute(part))
    return encoder


def computed(planned: Planned) -> tuple[Tensor, tuple[LayerReport | Skip, ...]]:
    """Compute a tensor in memory; see `compute`. One that stays is the source's own.

    Returns:
        The tensor, and what is to be said of the steps.
    """
    if planned.storing is not None:
        raise ValueError(f"`{planned.key}` is several tensors, which only a file holds together")
    if planned.is_copy:
        return planned.source.tensor(planned.own), ()
    result = torch.empty(planned.shape, dtype=planned.element.dtype)
    flat = result.view(-1)

    def put(start: int, piece: Tensor, /, beside: str = "") -> None:
        flat[start : start + piece.numel()] = piece.reshape(-1)

    return result, compute(planned, put)


def _parts(planned: Planned, put: Put, encoder: Encoder | None) -> Iterator[tuple[int, _Tiles]]:
    """The rows of each step, by its number; those of none, before and between, are handed on as they are."""
    rows = planned.shape[0] if planned.shape else 1
    places = [(step.parameter.rows or (0, rows), n) for n, step in enumerate(planned.steps)]
    at = 0
    for (first, last), number in (*sorted(places), ((rows, rows), None)):
        if at < first:
            _Tiles(planned, (at, first), put, None, encoder).keep_all()
        if number is not None:
            yield number, _Tiles(planned, (first, last), put, planned.steps[number], encoder)
        at = last


class _Tiles:
    """Some rows of the tensor that the result begins as, tile by tile, and where they go."""

    def __init__(
        self,
        planned: Planned,
        rows: tuple[int, int],
        put: Put,
        step: Step | None,
        encoder: Encoder | None,
    ) -> None:
        stored = planned.source.dtype(planned.own)
        self.dtype = wide(stored, planned.element.dtype)
        self.weight = Stored(planned.source, planned.own, self.dtype, rows)
        self.count, self.columns = self.weight.shape
        self.height = tile_height(self.weight.shape)
        self._planned, self._put, self._first = planned, put, rows[0]
        self._rounded = SCRATCH.take((self.height, self.columns), planned.element.dtype)
        self._encoder, self._codes = encoder, self._rounded
        self._chance: ByChance | None = None
        alone = planned.storing and not planned.steps and (planned.storing.parameter, None)
        if planned.seed is not None and (place := step.place if step else alone):
            encoded = encoder is not None
            self._chance = ByChance.of(planned.seed, planned.element.dtype, *place, encoded=encoded)

    def __iter__(self) -> Iterator[slice]:
        return tiles_of(self.weight.shape)

    def memory(self) -> Tensor:
        """Memory for a tile in the dtype of the computation."""
        return SCRATCH.take((self.height, self.columns), self.dtype)

    def rounded(self, part: slice) -> Tensor | None:
        """Memory for a tile of the result; None where only `round` may make it."""
        if self._chance is not None or self._encoder is not None:
            return None
        return self._rounded[: part.stop - part.start]

    def round(self, tile: Tensor, part: slice) -> Tensor:
        """The numbers of some rows in the dtype of the result; those that its codes stand for."""
        if self._encoder is not None:
            chance = self._chance and self._chance.drawn(tile, part.start)
            first = self._first + part.start
            self._codes, numbers = self._encoder.encode(tile, first, chance)
            return numbers
        if self._chance is not None:
            return self._chance.round(tile, part.start)
        return self._rounded[: len(tile)].copy_(tile)

    def put(self, part: slice, tile: Tensor) -> None:
        """Hand on a tile of the result, which was rounded last; or its codes."""
        width = self.columns
        if self._encoder is not None:
            tile, width = self._codes, self._codes.shape[1]
        self._put((self._first + part.start) * width, tile)

    def keep_all(self) -> None:
        """Hand on all rows as they are stored."""
        for part in self:
            self.keep(part)

    def keep(self, part: slice) -> None:
        """Hand on what is stored. NaN and infinity may stay, not arise."""
        tile = self.weight.stored(part)
        if tile.dtype != self._planned.element.dtype or self._encoder is not None:
            before, tile = tile, self.round(tile, part)
            before = before.to(self.dtype)
            lost = before.isfinite() & ~tile.to(self.dtype).isfinite()
            if bool(lost.any()):
                what = f"tensor `{self._planned.key}`"
                raise _overflow(what, before[lost], self._planned.element.dtype)
        self.put(part, tile)


def _apply(planned: Planned, step: Step, tiles: _Tiles) -> LayerReport | Skip:
    """Write the rows of a parameter, with what a step adds to them."""
    changed = _Changed(tiles, step)
    measured: list[tuple[float, float, float, float]] = []
    seen = 0  # rows
    usual = max(1, min(step.every, tiles.count * tiles.columns // _SAMPLE))
    if planned.seed is not None:
        usual = 1  # chance makes noise, of which a sample would have more
    for part in tiles:
        computed = changed.compute(part)
        rounded, _ = computed
        every, found = usual, changed.measure(part, rounded, usual)
        if not found[0] and every > 1:
            every = 1
            found = changed.measure(part, rounded, every)
        measured.append(found)
        seen += -(-len(rounded) // every)
        if not found[0]:
            tiles.keep(part)  # a minus zero plus a zero would be a zero
        else:
            changed.put(part, computed)
    return step.report(changed.change, Measured.joined(measured, seen / max(1, tiles.count)))


class _Changed:
    """What a step makes of tiles, and how that is measured; each method overwrites the memory."""

    def __init__(self, tiles: _Tiles, step: Step) -> None:
        self._tiles, self._step = tiles, step
        self.change = step.change(tiles.weight, tiles.dtype)
        self._memory = [tiles.memory() for _ in range(3)]
        self._exact: Tensor | None = None

    def compute(self, part: slice) -> tuple[Tensor, bool]:
        """The result as it is written, and whether all of it is finite."""
        tiles, (d, w, x) = self._tiles, self._of(part)
        self._exact = None
        if isinstance(self.change, Replacement):
            direct = tiles.rounded(part)
            if direct is not None and self.change.rounded(part, direct):
                return direct, _fits(direct, direct.dtype)
            exact = self._exact = self.change.rows(part, x)
        else:
            self._exact = self.change.rows(part, d)
            exact = torch.add(tiles.weight.rows(part, w), self._exact, out=x)
        try:
            rounded = tiles.round(exact, part)
        except NonFiniteError as error:  # of what encodes it, which knows nothing of the change
            raise self.fault(part, exact.dtype) from error
        dtype = rounded.dtype
        # One that is a little larger than the largest may be rounded to it; to float8, torch rounds any.
        near = _fits(exact, dtype, near=True) and _fits(rounded.float(), dtype)
        return rounded, near or _fits(exact, dtype)

    def put(self, part: slice, computed: tuple[Tensor, bool]) -> None:
        """Hand on what `compute` gave last, if all of it is finite."""
        rounded, fits = computed
        if not fits:
            raise self.fault(part, rounded.dtype)
        self._tiles.put(part, rounded)

    def measure(
        self, part: slice, rounded: Tensor, every: int
    ) -> tuple[float, float, float, float]:
        """Norms as in `Measured`, from one in so many rows of what `compute` gave last."""
        some = slice(part.start, part.stop, every)
        d, w, x = (one[: -(-len(rounded) // every)] for one in self._of(part))
        exact, base = self._exact, self._tiles.weight.rows(some, w)
        exact = self.change.rows(some, x) if exact is None else exact[::every].contiguous()
        if isinstance(self.change, Replacement):
            exact = torch.sub(exact, base, out=d)
        whole = math.sqrt(rounded.numel() / max(1, exact.numel()))
        norm, size = _norm(exact), _norm(base)
        if not norm:
            return 0.0, 0.0, 0.0, whole * size
        moved = _norm(x.copy_(rounded[::every]).sub_(base))
        return whole * norm, whole * moved, whole * _norm(x.sub_(exact)), whole * size

    def fault(self, part: slice, dtype: torch.dtype) -> NonFiniteError:
        """The error for a tile that is not finite."""
        d, w, x = self._of(part)
        base = self._tiles.weight.rows(part, w)
        if isinstance(self.change, Replacement):
            d = torch.sub(self.change.rows(part, x), base, out=d)
        else:
            d = self.change.rows(part, d)
        what = f"layer `{self._step.parameter.target}`"
        return self._step.not_finite(base, d) or _overflow(what, base + d, dtype)

    def _of(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        d, w, x = (one[: part.stop - part.start] for one in self._memory)
        return d, w, x


def _fits(numbers: Tensor, dtype: torch.dtype, near: bool = False) -> bool:
    """Whether all numbers are finite and in the range of a dtype, or nearer to it than its next would be."""
    if not numbers.numel():
        return True
    low, high = (float(one) for one in torch.aminmax(numbers))
    limits = torch.finfo(dtype)
    return max(-low, high) <= limits.max * (1 + limits.eps / 4 if near else 1)


def _norm(tile: Tensor) -> float:
    """Frobenius norm of a contiguous tile; a BLAS product reads it faster than a reduction does."""
    flat = tile.view(-1)
    return math.sqrt(float(torch.dot(flat, flat)))


def _overflow(what: str, numbers: Tensor, dtype: torch.dtype) -> NonFiniteError:
    return NonFiniteError(
        f"{what}: values up to {float(numbers.abs().max()):.3g} do not fit {spelled(dtype)}, which "
        f"ends at {torch.finfo(dtype).max:.5g}; use `dtype=` bf16 or fp32, or less strength"
    )
