"""Encoding: weights into codes and scales, as ComfyUI's own writer has them; `storages.py` has the table."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from ...errors import NonFiniteError
from .fp8 import widened
from .integers import turned_back


class Chance(Protocol):
    """Rounds numbers up or down by chance, the nearer the likelier; `linalg/stochastic.py` has one."""

    def to_floats(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """Round to the numbers of a dtype."""
        ...

    def to_steps(self, numbers: Tensor, spacing: Tensor | float) -> Tensor:
        """Round to multiples of a spacing, which is that at each number; float32."""
        ...


class Encoder(ABC):
    """One weight on its way into a file, some of its rows at a time, in any order.

    Args:
        key: Of the weight, which ends in `.weight`.
        shape: Of the weight, (rows, columns).
        dtype: Of the codes.
    """

    #: Whether it must `look` at all rows before it can encode any.
    looks = False
    #: Whether it follows chance; else numbers are always rounded to the nearest.
    chances = True

    def __init__(self, key: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.key, self.shape, self.dtype = key, shape, dtype
        self._norms: dict[int, tuple[float, float]] = {}

    def look(self, rows: Tensor, first: int) -> None:  # noqa: B027  most need nothing
        """See some rows, for what several of them have in common; see `encode`."""

    @abstractmethod
    def encode(
        self, rows: Tensor, first: int, chance: Chance | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the codes of some rows, and the numbers that these stand for.

        Args:
            rows: (n, columns).
            first: Which is the first of them.
            chance: By which each is rounded up or down; None: to the nearest.

        Returns:
            Rows of codes, and as float32 numbers of the shape of `rows`.
        """

    def count(self, exact: Tensor, numbers: Tensor, first: int) -> None:
        """Count what encoding some rows has changed."""
        self._norms[first] = float(exact.norm()), float((numbers - exact).norm())

    def keep(self, weight: Tensor) -> None:
        """Count a weight that is stored so already: nothing of it changes."""
        self._norms[0] = float(weight.norm()), 0.0

    @abstractmethod
    def parts(self) -> dict[str, Tensor]:
        """The tensors beside the codes, by name after that of the layer; whole once all rows are encoded."""

    def check(self, largest: Tensor) -> None:
        """Raise a `NonFiniteError` if the largest numbers are none."""
        if not bool(largest.isfinite().all()):
            raise NonFiniteError(
                f"`{self.key}` holds NaN or infinity, which cannot be stored with scales; keep it whole "
                "(`whole=`)"
            )

    @property
    def norms(self) -> tuple[float, float]:
        """Frobenius norms of the weight, and of what storing it has changed."""
        exact, lost = zip(*self._norms.values(), strict=True) if self._norms else ((), ())
        return math.hypot(*exact), math.hypot(*lost)


class ScalingEncoder(Encoder):
    """One that divides numbers by scales, and rounds what comes of it."""

    def encode(
        self, rows: Tensor, first: int, chance: Chance | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Encoder`."""
        exact = rows.float()
        scales = self.scaled(exact, first)
        divided = self.divided(exact, scales)
        codes = self.nearest(divided) if chance is None else self.by_chance(divided, chance)
        numbers = self.multiplied(codes, scales)
        self.count(exact, numbers, first)
        return codes, numbers

    def multiplied(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The numbers that codes stand for, as they are decoded; fresh float32."""
        return self.widened(codes).mul_(scales)

    @abstractmethod
    def scaled(self, rows: Tensor, first: int) -> Tensor:
        """The scales of some rows, in a shape that goes with theirs; remembers them."""

    @abstractmethod
    def divided(self, rows: Tensor, scales: Tensor) -> Tensor:
        """Fresh numbers in units of their scales, within what codes can hold."""

    @abstractmethod
    def nearest(self, numbers: Tensor) -> Tensor:
        """Numbers that are divided by their scales, as codes."""

    @abstractmethod
    def by_chance(self, numbers: Tensor, chance: Chance) -> Tensor:
        """The same, but each number as one of its two neighbours."""

    def widened(self, codes: Tensor) -> Tensor:
        """Fresh float32 of codes."""
        return widened(codes)


class ScaledFloat(ScalingEncoder):
    """Float8 with one scale, or one for each block: the largest number over the largest of the format.

    Args:
        key: See `Encoder`.
        shape: See there.
        dtype: See there.
        blocks: Blocks of rows and of columns that have a scale each.
        scales: Dtype in which the scales are kept.
    """

    looks = True

    def __init__(
        self,
        key: str,
        shape: tuple[int, int],
        dtype: torch.dtype,
        blocks: tuple[int, int] = (1, 1),
        scales: torch.dtype | None = None,
    ) -> None:
        super().__init__(key, shape, dtype)
        self._limit = torch.finfo(dtype).max if dtype.is_floating_point else 127.0
        self._largest, self._kept = torch.zeros(blocks), scales or torch.float32

    def look(self, rows: Tensor, first: int) -> None:
        """Remember the largest number of each block."""
        blocks = rows.view(len(rows), self._largest.shape[1], -1).abs().amax(dim=2).float()
        places = self._places(first, len(rows)).unsqueeze(1).expand_as(blocks)
        self._largest.scatter_reduce_(0, places, blocks, "amax")

    @property
    def scale(self) -> Tensor:
        """Of each block; 1 where it holds nothing that could be told apart.

        Raises:
            NonFiniteError: Some number is none.
        """
        self.check(self._largest)
        scale = (self._largest / self._limit).to(self._kept).float()
        return scale.masked_fill_(~(1 / scale).isfinite(), 1.0)

    def scaled(self, rows: Tensor, first: int) -> Tensor:
        """That of each number; where there is one alone, it."""
        scale = self.scale
        if scale.numel() == 1:
            return scale
        width = self.shape[1] // scale.shape[1]
        return scale[self._places(first, len(rows))].repeat_interleave(width, dim=1)

    def divided(self, rows: Tensor, scales: Tensor) -> Tensor:
        """By way of the scale's reciprocal, as ComfyUI does."""
        return (rows * (1 / scales)).clamp_(-self._limit, self._limit)

    def nearest(self, numbers: Tensor) -> Tensor:
        """The nearest float8; ties to even."""
        return numbers.to(self.dtype)

    def by_chance(self, numbers: Tensor, chance: Chance) -> Tensor:
        """See `Encoder`."""
        return chance.to_floats(numbers, self.dtype)

    def parts(self) -> dict[str, Tensor]:
        """The scale, or those of the blocks."""
        scale = self.scale
        return {"weight_scale": scale.reshape(()) if scale.numel() == 1 else scale}

    def _places(self, first: int, count: int) -> Tensor:
        """Which block of rows each of some rows is in."""
        return torch.arange(first, first + count) // (self.shape[0] // self._largest.shape[0])


class Integers(ScalingEncoder):
    """Codes that are integers of 8 bits."""

    def divided(self, rows: Tensor, scales: Tensor) -> Tensor:
        """By division."""
        return (rows / scales).clamp_(-128, 127)

    def nearest(self, numbers: Tensor) -> Tensor:
        """The nearest integer; ties to even."""
        return numbers.round_().to(self.dtype)

    def by_chance(self, numbers: Tensor, chance: Chance) -> Tensor:
        """See `Encoder`."""
        return chance.to_steps(numbers, 1.0).to(self.dtype)

    def widened(self, codes: Tensor) -> Tensor:
        """Fresh float32 of codes."""
        return codes.float()


class ScaledInteger(Integers, ScaledFloat):
    """Integers of 8 bits with one scale, or one for each block: the largest number over 127."""


class Rows(Integers):
    """Integers of 8 bits with a scale for each row: its largest number over 127."""

    def __init__(self, key: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__(key, shape, dtype)
        self._scales = torch.zeros(shape[0], 1)

    def scaled(self, rows: Tensor, first: int) -> Tensor:
        """The rows' own."""
        largest = rows.abs().amax(dim=1, keepdim=True)
        self.check(largest)
        found = (largest / 127).clamp_(min=1e-30)
        self._scales[first : first + len(rows)] = found
        return found

    def parts(self) -> dict[str, Tensor]:
        """The scales, a column."""
        return {"weight_scale": self._scales}


class RotatedRows(Rows):
    """The same of a weight that is rotated by groups of its columns; see `integers.py`."""

    def __init__(
        self, key: str, shape: tuple[int, int], dtype: torch.dtype, group: int = 256
    ) -> None:
        super().__init__(key, shape, dtype)
        self._group = group

    def encode(
        self, rows: Tensor, first: int, chance: Chance | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Encoder`; the rotation is its own inverse and changes no norm."""
        codes, numbers = super().encode(turned_back(rows.float(), self._group), first, chance)
        return codes, turned_back(numbers, self._group)
