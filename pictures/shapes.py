"""What a picture is made of: plain shapes in pixels, and the axes that numbers are laid out on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Colour: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

# Okabe & Ito's colours, which colour-blind people can tell apart too, on a dark page.
PAGE: Colour = (26, 27, 32)
PANEL: Colour = (35, 37, 44)
GRID: Colour = (62, 65, 76)
STRONG: Colour = (240, 242, 248)
WEAK: Colour = (168, 173, 188)
BLUE: Colour = (86, 180, 233)
ORANGE: Colour = (230, 159, 0)
GREEN: Colour = (0, 188, 142)
WARNING: Colour = (240, 228, 66)


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle."""

    left: float
    top: float
    right: float
    bottom: float
    colour: Colour


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points, so many pixels wide."""

    points: tuple[Point, ...]
    colour: Colour
    width: float = 1.0


@dataclass(frozen=True, slots=True)
class Area:
    """A filled polygon."""

    points: tuple[Point, ...]
    colour: Colour


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text.

    Attributes:
        x: Pixel of the anchor, from the left.
        y: Pixel of the anchor, from the top.
        text: What it says.
        size: Size of the font, in pixels.
        colour: Colour of the letters.
        anchor: Pillow's: left, middle or right, and middle or the letters' ascender.
    """

    x: float
    y: float
    text: str
    size: int
    colour: Colour = WEAK
    anchor: str = "lm"


# Marks of a doubling axis closer than this factor would have labels that overlap.
_APART = 1.25

Shape: TypeAlias = Box | Line | Area | Text


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of numbers and the marks on it.

    Attributes:
        low: The smallest.
        high: The largest; above `low`.
        marks: Numbers that get a grid line and a label.
        is_log: Whether equal steps are equal factors.
        unit: What stands after each label.
    """

    low: float
    high: float
    marks: tuple[float, ...]
    is_log: bool = False
    unit: str = ""

    def part(self, value: float) -> float:
        """Where a number is between `low`, 0, and `high`, 1; never outside."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def label(self, mark: float) -> str:
        """The text of a mark."""
        return f"{mark:g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Frame:
    """The rectangle that a panel's numbers are drawn in, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def x(self, part: float) -> float:
        """The pixel at a share of the width."""
        return self.left + part * (self.right - self.left)

    def y(self, part: float) -> float:
        """The pixel at a share of the height, from below."""
        return self.bottom - part * (self.bottom - self.top)


def linear_axis(
    values: Sequence[float], unit: str = "", *, steps: int = 4, least: float = 0.0
) -> Axis:
    """Return an axis from 0 up to a round number above all values, with round marks.

    Args:
        values: What is to be shown, none below 0; all zero, or none at all, gives 0 to 1.
        unit: What stands after each label.
        steps: About how many marks.
        least: The smallest distance between two.
    """
    top = max(values, default=0.0) or 1.0
    size = 10.0 ** math.floor(math.log10(top / steps))
    step = next(size * one for one in (1, 2, 2.5, 5, 10) if top <= steps * size * one)
    step = max(step, least)
    count = math.ceil(top / step - 1e-9)
    return Axis(0.0, count * step, tuple(index * step for index in range(count + 1)), unit=unit)


def doubling_axis(most: int) -> Axis:
    """Return an axis from 1 to a number, 2 at least, marked at 1, 2, 4, ... and at its end."""
    high = max(most, 2)
    marks = [2.0**power for power in range(high.bit_length())]
    ends = [float(high)] if high >= _APART * marks[-1] else []
    return Axis(1, high, (*marks, *ends), is_log=True)
