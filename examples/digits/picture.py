"""The demo's picture: one row a digit, one column a model, a few words above each column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SCALE = 7
"""Screen pixels a picture pixel takes, each way."""
GAP_X, GAP_Y = 28, 10
MARGIN = 48
LABELS = 52
"""Width of the column of row labels."""
LINE = 27
RADIUS = 10

_PAGE = (19, 21, 28)
_STRONG = (240, 242, 248)
_WEAK = (146, 152, 170)


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One model's pictures.

    Attributes:
        lines: What stands above, the first one larger: ``("rank 4", "212 kB", "error 0.31")``.
        images: (rows, 3, height, width) in 0..1; row i is labelled i.
    """

    lines: tuple[str, ...]
    images: Tensor


def contact_sheet(columns: Sequence[Column]) -> Image.Image:
    """Draw the columns side by side, in pixels as large as `SCALE`.

    Args:
        columns: At least one; all with the same number and size of images.

    Returns:
        An RGB picture; its size is `sheet_size` of the same columns.
    """
    sheet = Image.new("RGB", sheet_size(columns), _PAGE)
    draw = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(23), ImageFont.load_default(18)
    rows, _, height, width = columns[0].images.shape
    width, height = SCALE * width, SCALE * height
    mask = _rounded(width, height)
    top = MARGIN + _header(columns)
    for row in range(rows):
        middle = top + row * (height + GAP_Y) + height // 2
        draw.text((MARGIN, middle), str(row), _WEAK, title, anchor="lm")
    for index, column in enumerate(columns):
        left = MARGIN + LABELS + index * (width + GAP_X)
        for number, line in enumerate(column.lines):
            colour, font = (_WEAK, small) if number else (_STRONG, title)
            position = (left + width // 2, MARGIN + number * LINE + LINE // 2)
            draw.text(position, line, colour, font, anchor="mm")
        for row, image in enumerate(column.images):
            enlarged = _picture(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left, top + row * (height + GAP_Y)), mask)
    return sheet


def sheet_size(columns: Sequence[Column]) -> tuple[int, int]:
    """Width and height of the columns' sheet, pixels."""
    rows, _, height, width = columns[0].images.shape
    across = LABELS + len(columns) * (SCALE * width + GAP_X) - GAP_X
    down = _header(columns) + rows * (SCALE * height + GAP_Y) - GAP_Y
    return 2 * MARGIN + across, 2 * MARGIN + down


def _header(columns: Sequence[Column]) -> int:
    return LINE * max(len(column.lines) for column in columns) + LINE // 2


def _picture(image: Tensor) -> Image.Image:
    """An image (3, height, width) in 0..1 as eight-bit RGB."""
    levels = (image * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _rounded(width: int, height: int) -> Image.Image:
    """White with rounded corners on black, drawn four times too large for smooth edges."""
    mask = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * width, 4 * height), 4 * RADIUS, fill=255)
    return mask.resize((width, height), Image.Resampling.LANCZOS)
