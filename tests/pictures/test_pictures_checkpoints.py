"""The picture of two checkpoints: its bars are the numbers of the comparison."""

from __future__ import annotations

import pytest
import torch
from checkpoints import SD1, grid, source, trained
from pixels import heights

from lorakit.lora_ops import compare_checkpoints
from lorakit.pictures import checkpoints_picture
from lorakit.pictures.shapes import BLUE, GREEN, ORANGE, linear_axis


def test_the_bars_of_two_checkpoints_can_be_read_back() -> None:
    one = grid(SD1, torch.float16)
    found = compare_checkpoints(source(one), source(trained(one)))
    picture = checkpoints_picture(("one", "two"), found)
    assert (picture.size, picture.mode) == ((960, 520), "RGB")
    panels = (
        (found.blocks(), BLUE, 130, 290),
        (found.components(), ORANGE, 364, 484),
        (found.kinds(), GREEN, 364, 484),
    )
    for groups, colour, top, bottom in panels:
        sizes = [100 * group.size for group in groups.values()]
        high = linear_axis(sizes).high
        for seen, size in zip(heights(picture, colour, top, bottom), sizes, strict=True):
            assert seen == pytest.approx((bottom - top) * size / high, abs=2)


def test_checkpoints_that_have_no_share_have_a_picture() -> None:
    one = grid(SD1, torch.float16)
    zero = {key: tensor * 0 for key, tensor in one.items()}
    for first, second in ((one, one), (zero, one), (zero, zero)):
        found = compare_checkpoints(source(first), source(second))
        assert checkpoints_picture(("a" * 200, "b" * 200), found).size == (960, 520)
