"""Integers with scales: `int8_tensorwise`, `convrot_w4a4` and `asym_w4a8_int8`, rotated or not.

A rotated weight (ConvRot) was multiplied by an orthogonal matrix of signs, group by group of its columns, so
that its largest numbers are smaller; turned back, its rounding errors are mixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..base import quote
from .blocks import nibbles
from .fp8 import INPUT_SCALES, widened
from .headers import Headers, number
from .memory import PIECE
from .weight import Parts, Scaled

_SIGNS = (
    *((1.0, 1.0, 1.0, -1.0), (1.0, 1.0, -1.0, 1.0)),
    *((1.0, -1.0, 1.0, 1.0), (-1.0, 1.0, 1.0, 1.0)),
)
# Of the mixed errors of a group, which are as those of one rounding (its step / sqrt(12)) but bell-shaped:
# two steps are 6.9 of their standard deviations.
_MIXED = 2.0


@cache
def integer_pairs(*, signed: bool) -> Tensor:
    """The two integers of a byte, the low half first."""
    values = torch.arange(16.0)
    values = torch.where(values < 8, values, values - 16) if signed else values
    return torch.stack([values.repeat(16), values.repeat_interleave(16)], dim=1)


@dataclass(frozen=True)
class Integers(Scaled):
    """Integers of 8 bits, or two of 4 bits a byte, each times a scale.

    Attributes:
        blocks: Blocks of rows and of columns that have a scale each.
        rotated: Columns of a group that was rotated; 0 for none.
        packed: Whether a byte holds two.
    """

    blocks: tuple[int, int]
    rotated: int = 0
    packed: bool = False

    def codes(self, parts: Parts) -> Tensor:
        """The integers."""
        codes = parts["codes"]
        return (
            nibbles(codes, integer_pairs(signed=True))
            if self.packed
            else widened(codes).reshape(self.padded)
        )

    def scales(self, parts: Parts) -> Tensor:
        """The scales."""
        return parts["scales"].float().reshape(self.blocks)

    def gaps(self, numbers: Tensor) -> Tensor:
        """1; more where errors are mixed."""
        gaps = torch.full_like(numbers, _MIXED if self.rotated else 1.0)
        return gaps.masked_fill_(~numbers.isfinite(), torch.nan)

    def decode(self, parts: Parts) -> Tensor:
        """The products, turned back."""
        return turned_back(super().decode(parts), self.rotated)


@dataclass(frozen=True)
class Grouped(Integers):
    """Indices of 4 bits into a table; times the scale of a group they are rounded to 8 bits.

    Attributes:
        group: Columns with one scale.
    """

    group: int = 16

    def codes(self, parts: Parts) -> Tensor:
        """The integers of 8 bits, and what was left of the group's mean, in units of the row's scale."""
        table = parts.get("table")
        pairs = integer_pairs(signed=False)
        pairs = pairs - 8 if table is None else table.float()[pairs.long()]
        numbers = nibbles(parts["codes"], pairs).view(-1, self.group)
        rows, scales = -(-PIECE // self.group), self._within(parts).reshape(-1, 1)
        for piece, scale in zip(numbers.split(rows), scales.split(rows), strict=True):
            piece.mul_(scale).round_().clamp_(-127, 127)
        return numbers.view(self.padded)

    def decode(self, parts: Parts) -> Tensor:
        """The products and corrections, turned back."""
        if "corrections" not in parts:
            return super().decode(parts)
        found = self.codes(parts).mul_(self.scales(parts)).view(self.padded[0], -1, self.group)
        found.add_(parts["corrections"].float().t().unsqueeze(-1))
        return turned_back(found.view(self.shape), self.rotated)

    def steps(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """Those of the widest gap of the table at the group's scale, mixed over the row."""
        table = parts.get("table")
        gap = 1.0 if table is None else float(table.float().sort().values.diff().max())
        within = self._within(parts).square().mean(dim=1, keepdim=True).sqrt() * gap
        rows = within.clamp(min=1.0) * self.scales(parts)  # the rounding to 8 bits is one, too
        return self.run(rows, start, values) * self.gaps(values.double())

    def _within(self, parts: Parts) -> Tensor:
        scales = parts["within"]
        scales = scales.view(torch.float8_e4m3fn) if scales.dtype == torch.uint8 else scales
        return scales.float()


@cache
def rotation(size: int) -> Tensor:
    """The orthogonal matrix, (size, size): symmetric, and its own inverse."""
    found = signs = torch.tensor(_SIGNS)
    while len(found) < size:
        found = torch.kron(found, signs)
    return found / size**0.5


def turned_back(weight: Tensor, group: int) -> Tensor:
    """A weight without its rotation by groups of columns; 0 for none."""
    if not group:
        return weight
    groups = weight.view(-1, group)
    return torch.mm(groups, rotation(group).T).view(weight.shape)


def int8(headers: Headers, layer: str, settings: dict[str, object]) -> Integers:
    """A weight in `int8_tensorwise`, or by rows.

    Raises:
        QuantisedError: Its scales are missing or of another shape, or its rotation is none.
    """
    parts = headers.needed(layer, "weight", "weight_scale")
    key, scales = parts["weight"], parts["weight_scale"]
    headers.check_dtype(layer, key, torch.int8)
    shape = headers.shape(key)
    params = settings.get("params")
    inner = params.get("convrot") if isinstance(params, dict) else None
    group = 0
    if settings.get("convrot", inner):
        group = _group(headers, layer, settings, shape[-1] if shape else 0)
    return Integers(
        *(key, shape, f"int8{', rotated' if group else ''}", {"codes": key, "scales": scales}),
        padded=(math.prod(shape[:-1]), shape[-1] if shape else 1),
        blocks=headers.blocks(layer, scales, shape),
        rotated=group,
        beside=headers.held(layer, *INPUT_SCALES),
    )


def w4a4(headers: Headers, layer: str, settings: dict[str, object]) -> Integers:
    """A weight in `convrot_w4a4`.

    Raises:
        QuantisedError: Its scales are missing or of another shape, or its rotation is none.
    """
    parts = headers.needed(layer, "weight", "weight_scale")
    key, scales = parts["weight"], parts["weight_scale"]
    rows, columns = _packed(headers, layer, key)
    headers.check_floats(layer, scales)
    headers.check(layer, scales, (rows,), (rows, 1))
    return Integers(
        *(key, (rows, columns), "int4, rotated", {"codes": key, "scales": scales}),
        padded=(rows, columns),
        blocks=(rows, 1),
        rotated=_group(headers, layer, settings, columns),
        packed=True,
        beside=headers.held(layer, *INPUT_SCALES),
    )


def w4a8(headers: Headers, layer: str, settings: dict[str, object]) -> Grouped:
    """A weight in `asym_w4a8_int8`.

    Raises:
        QuantisedError: Its scales are missing or of another shape, or its rotation is none.
    """
    parts = headers.needed(layer, "weight", "weight_s_rel", "weight_s_channel")
    key, within, scales = parts.values()
    rows, columns = _packed(headers, layer, key)
    group = number(settings, "group_size", 16)
    if group < 1 or columns % group:
        raise headers.damaged(layer, f"its {columns} columns are no groups of {group}")
    headers.check_dtype(layer, within, torch.float8_e4m3fn, torch.uint8, torch.float32)
    headers.check(layer, within, (rows, columns // group))
    headers.check(layer, scales, (rows,), (rows, 1))
    more = headers.held(layer, "weight_codebook", "weight_correction")
    headers.check_floats(layer, scales, *more)
    held = {"codes": key, "within": within, "scales": scales}
    for table in headers.held(layer, "weight_codebook"):
        headers.check(layer, table, (16,))
        held["table"] = table
    for corrections in headers.held(layer, "weight_correction"):
        headers.check(layer, corrections, (columns // group, rows))
        held["corrections"] = corrections
    return Grouped(
        *(key, (rows, columns), "int4 in groups, rotated", held),
        padded=(rows, columns),
        blocks=(rows, 1),
        rotated=_group(headers, layer, settings, columns),
        packed=True,
        group=group,
        beside=headers.held(layer, *INPUT_SCALES),
    )


def _packed(headers: Headers, layer: str, key: str) -> tuple[int, int]:
    headers.check_dtype(layer, key, torch.int8, torch.uint8)
    shape = headers.shape(key)
    if len(shape) != 2 or not all(shape):
        raise headers.damaged(layer, f"{quote(key)} has the shape {list(shape)}: no matrix")
    return shape[0], shape[1] * 2


def _group(headers: Headers, layer: str, settings: dict[str, object], columns: int) -> int:
    """Columns of a rotated group."""
    group = number(settings, "convrot_groupsize", 256)
    is_power_of_4 = group >= 4 and group & (group - 1) == 0 and group.bit_length() % 2 == 1
    if not is_power_of_4 or columns % group:
        raise headers.damaged(
            layer,
            f"its {columns} columns are rotated in groups of {group}, which must be a power of 4 that "
            "divides them",
        )
    return group
