"""Encoding: weights into codes and scales, as ComfyUI's own writer has them; `storages.py` has the table."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import NonFiniteError
from .fp8 import widened

#: Rounds float32 to the dtype of codes.
Rounding: TypeAlias = Callable[[Tensor], Tensor]


class Encoder(ABC):
    """One weight on its way into a file, some of its rows at a time, in any order.

    Args:
        key: Of the weight, which ends in `.weight`.
        shape: Of the weight, (rows, columns).
        dtype: Of the codes.
    """

    #: Whether it must `look` at all rows before it can encode any.
    looks = False

    def __init__(self, key: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.key, self.shape, self.dtype = key, shape, dtype
        self._norms: dict[int, tuple[float, float]] = {}

    def look(self, rows: Tensor) -> None:  # noqa: B027  most need nothing
        """See some rows, for what all of them have in common."""

    @abstractmethod
    def encode(
        self, rows: Tensor, first: int, rounding: Rounding | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the codes of some rows, and the numbers that these stand for.

        Args:
            rows: (n, columns).
            first: Which is the first of them.
            rounding: Of numbers divided by their scales; None: to the nearest.

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
        self, rows: Tensor, first: int, rounding: Rounding | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Encoder`."""
        exact = rows.float()
        scales = self.scaled(exact, first)
        codes = (rounding or self.nearest)(self.divided(exact, scales))
        numbers = self.widened(codes).mul_(scales)
        self.count(exact, numbers, first)
        return codes, numbers

    @abstractmethod
    def scaled(self, rows: Tensor, first: int) -> Tensor:
        """The scales of some rows, in a shape that goes with theirs; remembers them."""

    @abstractmethod
    def divided(self, rows: Tensor, scales: Tensor) -> Tensor:
        """Fresh numbers in units of their scales, within what codes can hold."""

    @abstractmethod
    def nearest(self, numbers: Tensor) -> Tensor:
        """Numbers that are divided by their scales, as codes."""

    def widened(self, codes: Tensor) -> Tensor:
        """Fresh float32 of codes."""
        return widened(codes)


class ScaledFloat(ScalingEncoder):
    """Float8 with one scale: the largest number over the largest of the format."""

    looks = True

    def __init__(self, key: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__(key, shape, dtype)
        self._limit = torch.finfo(dtype).max
        self._largest = torch.zeros(())

    def look(self, rows: Tensor) -> None:
        """Remember the largest number."""
        self._largest = torch.maximum(self._largest, rows.abs().amax().float())

    @property
    def scale(self) -> Tensor:
        """Of the weight; 1 where it holds nothing that could be told apart.

        Raises:
            NonFiniteError: Some number is none.
        """
        self.check(self._largest)
        scale = self._largest / self._limit
        return scale if bool((1 / scale).isfinite()) else torch.ones(())

    def scaled(self, rows: Tensor, first: int) -> Tensor:
        """The one scale."""
        return self.scale

    def divided(self, rows: Tensor, scales: Tensor) -> Tensor:
        """By way of the scale's reciprocal, as ComfyUI does."""
        return (rows * (1 / scales)).clamp_(-self._limit, self._limit)

    def nearest(self, numbers: Tensor) -> Tensor:
        """The nearest float8; ties to even."""
        return numbers.to(self.dtype)

    def parts(self) -> dict[str, Tensor]:
        """The scale."""
        return {"weight_scale": self.scale}


class Rows(ScalingEncoder):
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

    def encode(
        self, rows: Tensor, first: int, rounding: Rounding | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Encoder`; integers are always rounded to the nearest."""
        return super().encode(rows, first, None)

    def divided(self, rows: Tensor, scales: Tensor) -> Tensor:
        """By division."""
        return (rows / scales).clamp_(-128, 127)

    def nearest(self, numbers: Tensor) -> Tensor:
        """The nearest integer; ties to even."""
        return numbers.round_().to(self.dtype)

    def widened(self, codes: Tensor) -> Tensor:
        """Fresh float32 of codes."""
        return codes.float()

    def parts(self) -> dict[str, Tensor]:
        """The scales, a column."""
        return {"weight_scale": self._scales}
