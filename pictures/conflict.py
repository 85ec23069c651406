"""The picture of several adapters: cosines and shared directions of all pairs, and cosines by block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from PIL.Image import Image

from ..lora_ops.report import counted
from .drawing import draw
from .panels import HEAD, SMALL, TITLE, block_labels, short, titles
from .shapes import GREEN, ORANGE, PANEL, STRONG, WEAK, Box, Colour, Frame, Shape, Text

if TYPE_CHECKING:
    from ..lora_ops.inspect.compare_several import SeveralComparison

WIDTH = 960
_LEFT, _RIGHT, _TOP = 84, 936, 150
_SIDE = 300
# Height of a row of the map by block, and what is below each part.
_ROW, _BELOW = 26, 84
# A letter on a colour lighter than this is dark.
_LIGHT = 0.6


def conflict_picture(names: Sequence[str], comparison: SeveralComparison) -> Image:
    """Draw how alike several adapters are and what directions they share, and their cosines by block.

    Args:
        names: What the adapters are called.
        comparison: How they compare; one layer at least.

    Returns:
        An RGB picture, 960 pixels wide, higher the more there are.
    """
    total, blocks = comparison.total, comparison.blocks()
    marks = [chr(ord("A") + at) if at < 26 else str(at + 1) for at in range(len(names))]
    pairs = list(combinations(range(len(names)), 2))
    shared = [
        [(out + into) / 2 for out, into in zip(*rows, strict=True)]
        for rows in zip(total.shared_outputs, total.shared_inputs, strict=True)
    ]
    about = (
        f"{counted(comparison.shared, 'layer')} of {len(comparison.layers)} in all; the sum's norm is "
        f"{total.of_unrelated:.2f} times that of unrelated changes"
    )
    top = _TOP + _SIDE + _BELOW
    bottom = top + _ROW * len(pairs)
    by_block = [[one.cosines[i][j] for one in blocks.values()] for i, j in pairs]
    rows = [f"{marks[i]} {marks[j]}" for i, j in pairs]
    below = Frame(_LEFT, top, _RIGHT, bottom)
    key = [
        Text(_LEFT, bottom + 44 + 22 * at, f"{mark}   {short(name, 70)}", SMALL, WEAK)
        for at, (mark, name) in enumerate(zip(marks, names, strict=True))
    ]
    shapes = [
        *titles([f"{len(names)} LoRAs"], about),
        *_map(
            Frame(_LEFT, _TOP, _LEFT + _SIDE, _TOP + _SIDE), "Cosine", marks, marks, total.cosines
        ),
        *_map(
            Frame(_RIGHT - _SIDE, _TOP, _RIGHT, _TOP + _SIDE),
            "Energy in the column's directions",
            marks,
            marks,
            shared,
        ),
        *_map(below, "Cosine by block: green alike, orange opposite", rows, list(blocks), by_block),
        *key,
    ]
    return draw(shapes, WIDTH, bottom + 44 + 22 * len(names) + 12)


def _map(
    frame: Frame,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
) -> list[Shape]:
    """A field for each number, -1 to 1, and the number itself where there is room."""
    shapes: list[Shape] = [Text(frame.left, frame.top - HEAD, title, TITLE, STRONG)]
    wide = (frame.right - frame.left) / len(columns)
    high = (frame.bottom - frame.top) / len(rows)
    for at, (label, line) in enumerate(zip(rows, values, strict=True)):
        y = frame.top + at * high
        shapes.append(Text(frame.left - 8, y + high / 2, label, SMALL, anchor="rm"))
        for place, value in enumerate(line):
            x = frame.left + place * wide
            shapes.append(Box(x + 1, y + 1, x + wide - 1, y + high - 1, shade(value)))
            if wide >= 44 and high >= 20:
                ink = PANEL if abs(value) > _LIGHT else STRONG
                shapes.append(
                    Text(x + wide / 2, y + high / 2, f"{value:.2f}", SMALL, ink, anchor="mm")
                )
    return [*shapes, *block_labels(frame, columns)]


def shade(value: float) -> Colour:
    """Return the colour of a number: the ground at 0, green at 1, orange at -1."""
    share = min(1.0, abs(value))
    end = GREEN if value >= 0 else ORANGE
    red, green, blue = (
        round(ground + share * (there - ground)) for ground, there in zip(PANEL, end, strict=True)
    )
    return red, green, blue
