"""SVDQuant: codes of 4 bits that take the smoothed input, and beside them a product of low rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..blocks import floats, nibbles
from ..integers import integer_pairs
from ..memory import PIECE
from ..weight import Parts
from . import tiles
from .weight import Nunchaku


@cache
def _pairs() -> Tensor:
    """The two floats of a byte, the low half first."""
    return torch.stack([floats().repeat(16), floats().repeat_interleave(16)], dim=1)


@cache
def _width_pairs() -> Tensor:
    """The widths with the variance of the roundings to each of the two floats of a byte."""
    levels = floats()[:8]
    below = levels.diff(prepend=torch.tensor([-0.5]))
    above = levels.diff(append=levels[-1:])
    widths = ((below**3 + above**3) / (below + above)).sqrt()
    return widths[torch.searchsorted(levels, _pairs().abs())]


@dataclass(frozen=True)
class LowRank(Nunchaku):
    """Rows of a layer: codes times scales, over the smoothing of their columns, and a product of low rank.

    The smoothing may have been moved into the layer before, whose rows are divided by it then. Both are turned
    back: `moved` is what the layer's own columns were smoothed by, `moved here` those of the layer behind.

    Attributes:
        first: The first of the layer's rows that are the weight's.
        among: How many rows the layer has.
        floats: Whether codes are floats, not integers.
    """

    first: int
    among: int
    floats: bool

    @property
    def roles_of_steps(self) -> tuple[str, ...]:
        """Codes too, where they are floats: larger ones lie further apart."""
        return tuple(self.parts) if self.floats else super().roles_of_steps

    def stored_size(self, size_of: Callable[[str], int]) -> int:
        """The weight's part of the layer."""
        return round(super().stored_size(size_of) * self.shape[0] / self.among)

    def decode(self, parts: Parts) -> Tensor:
        """The numbers, for an input that is not smoothed."""
        found = self.of_codes(parts)
        if "up" in parts:
            up, down = tiles.up(parts["up"])[self._rows(0)], tiles.down(parts["down"])
            found.addmm_(up.float(), down.float())
        return self._moved_back(found, parts)

    def of_codes(self, parts: Parts) -> Tensor:
        """What the codes stand for, over the smoothing: fresh float32, without the product."""
        pairs = _pairs() if self.floats else integer_pairs(signed=True)
        found = nibbles(tiles.codes(parts["codes"], self._rows(0)), pairs)
        scales, smooth = self._scales(parts, self._rows(0)), tiles.vector(parts["smooth"])
        some = max(1, PIECE // found.shape[1])
        for piece, scale in zip(found.split(some), scales.split(some), strict=True):
            piece.view(*scale.shape, -1).mul_(scale.unsqueeze(-1))
            piece.div_(smooth)
        return found

    def widths(self, parts: Parts, first: int, last: int) -> Tensor:
        """The scales, over the smoothing; of floats, times the width at the code."""
        rows = self._rows(first, last)
        scales = self._scales(parts, rows).double()
        found = scales.repeat_interleave(self.shape[1] // scales.shape[1], dim=1)
        found.div_(tiles.vector(parts["smooth"]))
        if self.floats:
            found.mul_(nibbles(tiles.codes(parts["codes"], rows), _width_pairs()))
        return self._moved_back(found, parts, first, last).abs_()

    def width_of_sums(self, parts: Parts) -> Tensor:
        """The width with the variance of what rounding makes of each row's sum, of integers: float64."""
        scales = self._scales(parts, self._rows(0)).double().square_()
        over = tiles.vector(parts["smooth"]).double().square_().reciprocal_()
        return (scales @ over.view(scales.shape[1], -1).sum(dim=1)).sqrt_()

    def _moved_back(
        self, numbers: Tensor, parts: Parts, first: int = 0, last: int | None = None
    ) -> Tensor:
        """Numbers of some rows as if each layer did its smoothing itself; in place."""
        columns = moved_smoothing(parts, "moved", "smooth")
        rows = moved_smoothing(parts, "moved here", "smooth behind")
        if columns is not None:
            numbers.div_(columns)
        return numbers if rows is None else numbers.mul_(rows[first:last].unsqueeze(1))

    def _rows(self, first: int, last: int | None = None) -> slice:
        """The layer's rows for some of the weight's."""
        return slice(self.first + first, self.first + (self.shape[0] if last is None else last))

    def _scales(self, parts: Parts, rows: slice) -> Tensor:
        """Those of groups of columns, float32, (rows, groups)."""
        found = tiles.scales(parts["scales"])[rows].float()
        if "rows" in parts:
            found.mul_(tiles.vector(parts["rows"])[rows].unsqueeze(1))
        return found.mul_(parts["whole"].float().reshape(())) if "whole" in parts else found


def moved_smoothing(parts: Parts, smoothing: str, here: str) -> Tensor | None:
    """A smoothing that was put into the layer before; None where the layer itself does it.

    Args:
        parts: Of a weight.
        smoothing: What it is, if the file tells.
        here: What the layer does itself: nothing but ones where it was moved.
    """
    if smoothing not in parts or not bool((parts[here] == 1).all()):
        return None
    return tiles.vector(parts[smoothing])
