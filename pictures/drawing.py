"""From shapes to pixels, with Pillow: twice as large at first, for smooth edges."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from ..lora_ops.text import plain
from .shapes import PAGE, Area, Box, Line, Shape, Text

_TIMES = 2


def draw(shapes: Iterable[Shape], width: int, height: int) -> Image.Image:
    """Return an RGB picture of this size, in pixels; later shapes cover earlier ones."""
    picture = Image.new("RGB", (_TIMES * width, _TIMES * height), PAGE)
    pen = ImageDraw.Draw(picture)
    for shape in shapes:
        _draw_one(pen, shape)
    return picture.reduce(_TIMES)


def _draw_one(pen: ImageDraw.ImageDraw, shape: Shape) -> None:
    match shape:
        case Box(left, top, right, bottom, colour):
            # Pillow's rectangles include their last pixel.
            corners = (_TIMES * left, _TIMES * top, _TIMES * right - 1, _TIMES * bottom - 1)
            pen.rectangle(
                (*corners[:2], max(corners[0], corners[2]), max(corners[1], corners[3])), colour
            )
        case Line(points, colour, width):
            pen.line(list(_scaled(points)), colour, round(_TIMES * width), joint="curve")
        case Area(points, colour):
            pen.polygon(list(_scaled(points)), colour)
        case Text(x, y, text, size, colour, anchor):
            pen.text(
                (_TIMES * x, _TIMES * y), _known(text), colour, _font(_TIMES * size), anchor=anchor
            )


def _scaled(points: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    return ((_TIMES * x, _TIMES * y) for x, y in points)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; before Pillow 10.1 it has one size alone, and Latin letters."""
    if "size" in inspect.signature(ImageFont.load_default).parameters:
        return ImageFont.load_default(size)
    return ImageFont.load_default()


def _known(text: str) -> str:
    text = plain(text)
    is_scalable = isinstance(_font(_TIMES), ImageFont.FreeTypeFont)
    return text if is_scalable else text.encode("latin-1", "replace").decode("latin-1")
