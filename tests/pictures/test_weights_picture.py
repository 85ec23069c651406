"""The picture of strengths by block: bars where they belong, above and below zero."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lorakit.pictures import block_weights_picture
from lorakit.pictures.shapes import BLUE

LEFT, RIGHT, TOP, BOTTOM = 84, 936, 60, 252


def heights(values: dict[str, float]) -> list[tuple[int, int]]:
    """First and last blue row in the middle of each block's column; (0, 0) for none."""
    picture = np.asarray(block_weights_picture("Some model", values))
    assert picture.shape == (300, 960, 3)
    found: list[tuple[int, int]] = []
    width = (RIGHT - LEFT) / len(values)
    for at in range(len(values)):
        column = picture[:, round(LEFT + (at + 0.5) * width)]
        rows = np.flatnonzero((np.abs(column.astype(int) - BLUE) < 8).all(axis=1))
        found.append((int(rows[0]), int(rows[-1])) if len(rows) else (0, 0))
    return found


def test_a_bar_is_as_high_as_its_strength() -> None:
    full, half, none = heights({"IN00": 1.0, "M00": 0.5, "OUT00": 0.0})
    assert full == pytest.approx((TOP, BOTTOM - 1), abs=1)
    assert half == pytest.approx(((TOP + BOTTOM) / 2, BOTTOM - 1), abs=1)
    assert none == (0, 0)


def test_below_zero_it_hangs() -> None:
    middle = (TOP + BOTTOM) / 2
    up, down = heights({"IN00": 1.0, "OUT00": -1.0})
    assert up == pytest.approx((TOP, middle), abs=1.5)
    assert down == pytest.approx((middle, BOTTOM - 1), abs=1.5)


def test_above_one_the_axis_grows() -> None:
    (one, two) = heights({"IN00": 1.0, "OUT00": 2.0})
    assert two[0] == pytest.approx(TOP, abs=1)
    assert one[0] == pytest.approx((TOP + BOTTOM) / 2, abs=1.5)


def test_sixty_one_blocks_fit() -> None:
    values = {f"S{at:02}": at / 60 for at in range(61)}
    tops = [top for top, _ in heights(values)][3:]
    assert tops == sorted(tops, reverse=True)
    assert isinstance(block_weights_picture("x", values), Image.Image)
