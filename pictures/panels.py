"""From numbers to shapes: bars over blocks, and curves over a count of directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .shapes import (
    GRID,
    PANEL,
    STRONG,
    WEAK,
    Area,
    Axis,
    Box,
    Colour,
    Frame,
    Line,
    Point,
    Shape,
    Text,
)

# Sizes of letters, and how far above a frame its title stands; in pixels.
SMALL, TITLE, HEAD = 18, 20, 21
# Share of a block's width that its bars take; and their most pixels, where there are few blocks.
_BARS, _WIDEST = 0.74, 64.0
# Pixels that a letter of a label takes, and what lies between two labels.
_LETTER, _BETWEEN = 10.5, 10
# Letters of a title.
_LONGEST = 56


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers that belong together.

    Attributes:
        name: For the legend; empty for none.
        colour: Colour of the bars.
        values: One number for each block; None where a block has none.
    """

    name: str
    colour: Colour
    values: Sequence[float | None]


def titles(names: Sequence[str], about: str) -> list[Shape]:
    """Return the head of a picture: what it is of, and a line about that."""
    title = " and ".join(short(name, _LONGEST // len(names)) for name in names)
    return [Text(24, 32, short(title, _LONGEST), 30, STRONG), Text(24, 68, about, 20, WEAK)]


def short(text: str, longest: int) -> str:
    """Return a name in so many letters at most."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def background(frame: Frame, title: str, axis: Axis, legend: Sequence[Series] = ()) -> list[Shape]:
    """Return a panel's ground, its title above it, and the marks of its vertical axis."""
    shapes: list[Shape] = [
        Box(frame.left, frame.top, frame.right, frame.bottom, PANEL),
        Text(frame.left, frame.top - HEAD, title, TITLE, STRONG),
    ]
    for mark in axis.marks:
        y = frame.y(axis.part(mark))
        shapes.append(Line(((frame.left, y), (frame.right, y)), GRID))
        shapes.append(Text(frame.left - 8, y, axis.label(mark), SMALL, anchor="rm"))
    x = frame.right
    for series in reversed([one for one in legend if one.name]):
        x -= len(series.name) * _LETTER
        shapes.append(Text(x, frame.top - HEAD, series.name, SMALL))
        shapes.append(Box(x - 20, frame.top - HEAD - 6, x - 8, frame.top - HEAD + 6, series.colour))
        x -= 20 + _BETWEEN
    return shapes


def bars(frame: Frame, axis: Axis, groups: Sequence[Series]) -> list[Box]:
    """Return bars from the axis' zero: side by side those of one block, block after block.

    Args:
        frame: Where to draw.
        axis: The vertical axis, which holds 0.
        groups: Series with one value for each block.
    """
    zero = frame.y(axis.part(0))
    found: list[Box] = []
    for index, series in enumerate(groups):
        for at, value in enumerate(series.values):
            if value is None:
                continue
            left, right = _edges(frame, at, len(series.values), index, len(groups))
            y = frame.y(axis.part(value))
            found.append(Box(left, min(y, zero), right, max(y, zero), series.colour))
    return found


def whiskers(
    frame: Frame, axis: Axis, ranges: Sequence[tuple[float, float] | None]
) -> Iterator[Line]:
    """Yield a vertical line from the low to the high of each block where they differ."""
    for at, ends in enumerate(ranges):
        if ends is not None and ends[0] < ends[1]:
            x = frame.x((at + 0.5) / len(ranges))
            low, high = (frame.y(axis.part(end)) for end in ends)
            yield Line(((x, low), (x, high)), STRONG, 2)


def block_labels(frame: Frame, labels: Sequence[str]) -> Iterator[Text]:
    """Yield the blocks' names below a frame: all that fit beside each other, from the first on."""
    free = 0.0
    for at, label in enumerate(labels):
        x, half = frame.x((at + 0.5) / len(labels)), len(label) * _LETTER / 2
        if x - half >= free:
            yield Text(x, frame.bottom + 15, label, SMALL, anchor="mm")
            free = x + half + _BETWEEN


def curve(
    frame: Frame, across: Axis, up: Axis, xs: Sequence[float], ys: Sequence[float]
) -> tuple[Point, ...]:
    """Return the pixels of a curve."""
    return tuple(
        (frame.x(across.part(x)), frame.y(up.part(y))) for x, y in zip(xs, ys, strict=True)
    )


def band(low: Sequence[Point], high: Sequence[Point], colour: Colour) -> Area:
    """Return the area between two curves."""
    return Area((*low, *reversed(high)), colour)


def across_marks(frame: Frame, axis: Axis) -> Iterator[Shape]:
    """Yield the marks of a horizontal axis."""
    for mark in axis.marks:
        x = frame.x(axis.part(mark))
        yield Line(((x, frame.top), (x, frame.bottom)), GRID)
        yield Text(x, frame.bottom + 15, axis.label(mark), SMALL, anchor="mm")


def message(frame: Frame, text: str) -> Text:
    """Return what stands in a panel that has nothing to show, between two marks."""
    return Text(frame.x(0.5), frame.y(0.625), text, TITLE, WEAK, "mm")


def _edges(frame: Frame, at: int, blocks: int, index: int, groups: int) -> tuple[float, float]:
    """The left and right edge of a bar, which is never narrower than a pixel."""
    width = (frame.right - frame.left) / blocks
    bar = max(1.0, min(_BARS * width, _WIDEST) / groups)
    left = frame.left + (at + 0.5) * width + (index - groups / 2) * bar
    return left, left + bar
