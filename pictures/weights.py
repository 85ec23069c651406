"""The picture of strengths by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from PIL.Image import Image

from .drawing import draw
from .panels import Series, background, bars, block_labels
from .shapes import BLUE, Axis, Frame, linear_axis

_WIDTH, _HEIGHT = 960, 300
_FRAME = Frame(84, 60, 936, 252)


def block_weights_picture(title: str, values: Mapping[str, float]) -> Image:
    """Draw a bar for each block.

    Args:
        title: What model they are of.
        values: Strengths by label, in order of execution; one at least.

    Returns:
        An RGB picture of 960 x 300 pixels.
    """
    axis = _axis(list(values.values()))
    shapes = [
        *background(_FRAME, f"{title}: strength by block", axis),
        *bars(_FRAME, axis, [Series("", BLUE, list(values.values()))]),
        *block_labels(_FRAME, list(values)),
    ]
    return draw(shapes, _WIDTH, _HEIGHT)


def _axis(values: list[float]) -> Axis:
    """From 0, or from as far below it as above where a number is negative; to 1 at least."""
    axis = linear_axis([*map(abs, values), 1.0])
    if min(values) >= 0:
        return axis
    below = [-mark for mark in axis.marks[:0:-1]]
    return replace(axis, low=-axis.high, marks=(*below, *axis.marks))
