"""SVDQuant: codes of 4 bits that take the smoothed input, and beside them a product of low rank.

A layer of Nunchaku's may be several of the model's, or a part of one; which, `nunchaku.py` knows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from ...source import storage_name
from ...spacing import spacing
from ..base import quote
from . import nunchaku_tiles as tiles
from .blocks import floats, nibbles
from .headers import Headers
from .integers import integer_pairs
from .memory import PIECE
from .weight import Parts, QuantisedWeight

#: What is added behind GELU, so that int4 without a sign holds it. The bias makes up for it.
SHIFT = 0.171875

# A sum of many roundings is bell-shaped: two widths of its variance are 6.9 of its standard deviations.
_MIXED = 2.0
# What a layer's other tensors are for, and what first and later files call them.
_NAMES = {
    "smooth": ("smooth", "smooth_factor"),
    "fused": ("smooth_orig", "smooth_factor_orig"),
    "down": ("lora_down", "proj_down"),
    "up": ("lora_up", "proj_up"),
    "rows": ("wcscales",),
    "whole": ("wtscale",),
}
_OF_SECOND = " of the second"


def halves() -> tuple[torch.dtype, torch.dtype]:
    """In what the numbers beside codes may be stored."""
    return torch.bfloat16, torch.float16


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


@dataclass(frozen=True)
class LowRank(Nunchaku):
    """Rows of a layer: codes times scales, over the smoothing of their columns, and a product of low rank.

    With `fused` among its parts, and ones for `smooth`, the layer before it smooths: that is undone here. With
    `before`, and ones for `smooth behind`, it is the layer before, and does that to its rows.

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
        columns, rows = _smoothed_before(parts, "fused", "smooth"), smoothed_behind(parts)
        if columns is not None:
            found.div_(columns)
        return found if rows is None else found.mul_(rows.unsqueeze(1))

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
        scales = self._scales(parts, rows).double().abs()
        found = scales.repeat_interleave(self.shape[1] // scales.shape[1], dim=1)
        found.div_(tiles.vector(parts["smooth"]).abs())
        if self.floats:
            found.mul_(nibbles(tiles.codes(parts["codes"], rows), _width_pairs()))
        columns, behind = _smoothed_before(parts, "fused", "smooth"), smoothed_behind(parts)
        if columns is not None:
            found.div_(columns.abs())
        return found if behind is None else found.mul_(behind[first:last].abs().unsqueeze(1))

    def _rows(self, first: int, last: int | None = None) -> slice:
        """The layer's rows for some of the weight's."""
        return slice(self.first + first, self.first + (self.shape[0] if last is None else last))

    def _scales(self, parts: Parts, rows: slice) -> Tensor:
        """Those of groups of columns, float32, (rows, groups)."""
        found = tiles.scales(parts["scales"])[rows].float()
        if "rows" in parts:
            found.mul_(tiles.vector(parts["rows"])[rows].unsqueeze(1))
        return found.mul_(parts["whole"].float().reshape(())) if "whole" in parts else found


@dataclass(frozen=True)
class Columns(Nunchaku):
    """A weight whose first columns are one layer's, and whose last are another's.

    Attributes:
        layers: Both.
    """

    layers: tuple[LowRank, LowRank]

    @property
    def roles_of_steps(self) -> tuple[str, ...]:
        """Those of both."""
        first, second = (dict.fromkeys(one.roles_of_steps, "") for one in self.layers)
        return tuple(joined(first, second))

    def decode(self, parts: Parts) -> Tensor:
        """Both, side by side."""
        both = zip(self.layers, _taken_apart(parts), strict=True)
        return torch.cat([one.decode(own) for one, own in both], dim=1)

    def widths(self, parts: Parts, first: int, last: int) -> Tensor:
        """Those of both."""
        both = zip(self.layers, _taken_apart(parts), strict=True)
        return torch.cat([one.widths(own, first, last) for one, own in both], dim=1)


@dataclass(frozen=True)
class Bias(Nunchaku):
    """Rows of a layer's bias, and what it lacks for the shift of the layer's input.

    It lacks what the codes make of the shift, which the program adds to their input alone.

    Attributes:
        first: The first of the layer's rows that are the bias's.
        dtype: In which it is stored.
        shifted: The weight, where its input is shifted.
        added: A bias of another layer, for the same output.
    """

    first: int
    dtype: torch.dtype
    shifted: LowRank | None = None
    added: Bias | None = None

    @property
    def roles_of_steps(self) -> tuple[str, ...]:
        """All."""
        return tuple(self.parts)

    def stored_size(self, size_of: Callable[[str], int]) -> int:
        """Of its own numbers: the others are the weight's."""
        return self.shape[0] * self.dtype.itemsize * (1 if self.added is None else 2)

    def decode(self, parts: Parts) -> Tensor:
        """The sum."""
        own, other = _taken_apart(parts)
        found = self._stored(own)
        if self.shifted is not None:
            found.add_(self.shifted.of_codes(_of_weight(own)).sum(dim=1), alpha=SHIFT)
        rows = smoothed_behind(own)
        if rows is not None:
            found.mul_(rows)
        return found if self.added is None else found.add_(self.added.decode(other))

    def widths(self, parts: Parts, first: int, last: int) -> Tensor:
        """Those of the dtype, and what the shift makes of the weight's."""
        own, other = _taken_apart(parts)
        found = spacing(self._stored(own), self.dtype)
        if self.shifted is not None:
            unsure = self.shifted.widths(_of_weight(own), 0, self.shape[0])
            found += unsure.square_().sum(dim=1).sqrt_() * SHIFT * _MIXED
        rows = smoothed_behind(own)
        if rows is not None:
            found *= rows.abs()
        if self.added is not None:
            found += self.added.widths(other, 0, 1)[0]
        return found.expand(last - first, -1)

    def _stored(self, parts: Parts) -> Tensor:
        return tiles.vector(parts["codes"])[self.first :][: self.shape[0]].clone()


def joined(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """The parts of two layers, as those of one weight."""
    return {**first, **{role + _OF_SECOND: key for role, key in second.items()}}


def _taken_apart(parts: Parts) -> tuple[Parts, Parts]:
    """Those of the first and of the second layer."""
    first = {role: t for role, t in parts.items() if not role.endswith(_OF_SECOND)}
    second = {role.removesuffix(_OF_SECOND): t for role, t in parts.items() if role not in first}
    return first, second


def _of_weight(parts: Parts) -> Parts:
    """Those of the weight, of a bias that needs it."""
    return {**parts, "codes": parts["codes of the weight"]}


def _smoothed_before(parts: Parts, smoothing: str, here: str) -> Tensor | None:
    """The smoothing of a layer's columns, where the layer before it does that; else None."""
    if smoothing not in parts or not bool((parts[here] == 1).all()):
        return None
    return tiles.vector(parts[smoothing])


def smoothed_behind(parts: Parts) -> Tensor | None:
    """What a weight's rows were divided by for the layer behind it; None where they were not."""
    return _smoothed_before(parts, "before", "smooth behind")


def low_rank(headers: Headers, layer: str, name: str, shifted: bool) -> tuple[LowRank, Bias | None]:
    """The weight and the bias of a whole layer.

    Args:
        headers: Of the file.
        layer: Of Nunchaku's.
        name: Of the model's layer.
        shifted: Whether it is behind GELU.

    Raises:
        QuantisedError: Its tensors are missing, of other dtypes or of shapes that do not fit.
    """
    codes, scales = headers.needed(layer, "qweight", "wscales").values()
    headers.check_dtype(layer, codes, torch.int8, torch.uint8)
    stored = headers.shape(codes)
    rows, columns = (stored[0], 2 * stored[1]) if len(stored) == 2 else (0, 0)
    if not rows or not columns or rows % tiles.TILE or columns % tiles.TILE:
        raise headers.damaged(
            layer, f"{quote(codes)} has the shape {list(stored)}: no tiles of {tiles.TILE}"
        )
    headers.check_dtype(layer, scales, torch.float8_e4m3fn, *halves())
    floats = headers.dtype(scales) == torch.float8_e4m3fn
    headers.check(layer, scales, (columns // (16 if floats else 64), rows))
    held = {role: key for role, names in _NAMES.items() for key in headers.held(layer, *names)}
    headers.check_floats(layer, *held.values())
    if "smooth" not in held:
        raise headers.damaged(layer, f"the file has no {quote(f'{layer}.smooth')}")
    if ("up" in held) != ("down" in held):
        raise headers.damaged(layer, "the file has only one of its factors of low rank")
    rank = max(1, headers.shape(held["up"])[-1] // 16) * 16 if "up" in held else 0
    shapes: Mapping[str, tuple[tuple[int, ...], ...]] = {
        **dict.fromkeys(("smooth", "fused"), ((columns,),)),
        "down": ((columns, rank),),
        "up": ((rows, rank),),
        "rows": ((rows,),),
        "whole": ((), (1,)),
    }
    for role, key in held.items():
        headers.check(layer, key, *shapes[role])
    weight = LowRank(
        *(f"{name}.weight", (rows, columns), f"SVDQuant {'nvfp4' if floats else 'int4'}"),
        {"codes": codes, "scales": scales, **held},
        first=0,
        among=rows,
        floats=floats,
    )
    return weight, _bias(headers, layer, name, weight if shifted and not floats else None, rows)


def _bias(
    headers: Headers, layer: str, name: str, shifted: LowRank | None, rows: int
) -> Bias | None:
    for key in headers.held(layer, "bias"):
        headers.check_floats(layer, key)
        headers.check(layer, key, (rows,))
        parts = {"codes": key}
        if shifted is not None:
            parts |= {"codes of the weight": shifted.parts["codes"]}
            parts |= {role: shifted.parts[role] for role in shifted.parts if role not in _UNUSED}
        dtype = headers.dtype(key)
        storage = f"{storage_name(dtype)}, packed"
        return Bias(f"{name}.bias", (rows,), storage, parts, first=0, dtype=dtype, shifted=shifted)
    return None


# The parts of a weight that the codes of it do without.
_UNUSED = ("codes", "up", "down")
