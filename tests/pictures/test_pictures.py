"""Pictures of adapters: the numbers behind them, where shapes lie, and what is in the pixels."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from adapters import Part, adapter, changes, read, tensors, written
from commands import lorakit_here, tiny_pair
from kinds import kinds
from PIL import Image, ImageFont
from pixels import heights

from lorakit.lora_ops import compare
from lorakit.lora_ops.inspect.spectra import Spectrum, spectra
from lorakit.nodes.form.pictures import as_image
from lorakit.pictures import comparison_picture, inspection_picture
from lorakit.pictures.drawing import draw
from lorakit.pictures.groups import by_block, likenesses, strengths
from lorakit.pictures.panels import Series, bars, block_labels, curve, whiskers
from lorakit.pictures.shapes import (
    BLUE,
    GREEN,
    ORANGE,
    PAGE,
    Axis,
    Box,
    Frame,
    Line,
    Text,
    doubling_axis,
    linear_axis,
)

FRAME = Frame(100, 50, 500, 250)
SD1 = [f"input_blocks.{i}.1.proj_in" for i in (1, 2, 4)] + ["middle_block.1.proj_in"]
UNITS = Axis(0, 1, (0, 1))


def parts(names: list[str] = SD1, **more: float) -> list[Part]:
    return [
        Part(module=name, seed=index, size=index + 1, **more) for index, name in enumerate(names)
    ]


# Numbers


def test_blocks_are_in_order_and_the_rest_is_last() -> None:
    names = ["lora_unet_out_2", "lora_unet_strange", "lora_unet_input_blocks_1_1_proj_in"]
    found = by_block([*names, "lora_te_text_model_encoder_layers_0_mlp_fc1"])
    assert list(found) == ["BASE", "IN01", "OUT11", "rest"]
    assert found["rest"] == ["lora_unet_strange"]


def test_without_blocks_the_components_are_there() -> None:
    assert by_block(["lora_unet_a", "lora_te_b", "lora_unet_c"]) == {
        "model": ["lora_unet_a", "lora_unet_c"],
        "text": ["lora_te_b"],
    }


def test_shares_are_those_of_the_multiplied_out_changes() -> None:
    squares = [float(one.square().sum()) for one in changes(tensors(parts())).values()]
    found = strengths(spectra(adapter(parts())))
    assert [one.label for one in found] == ["IN01", "IN02", "IN04", "M00"]
    for block, square in zip(found, squares, strict=True):
        assert block.share == pytest.approx(square / sum(squares), rel=1e-6)
        assert block.ranks == (6, 6, 6)


def test_ranks_of_a_block_have_their_mean_and_ends() -> None:
    names = [f"input_blocks.1.1.transformer_blocks.0.attn1.to_{one}" for one in "qkv"]
    given = [Part(module=name, rank=rank) for name, rank in zip(names, (2, 4, 9), strict=True)]
    (block,) = strengths(spectra(adapter(given)))
    assert block.ranks == (2, 5, 9)


def test_a_block_that_needs_the_base_has_no_share() -> None:
    nothing = torch.empty(0)
    first, second = (f"lora_unet_input_blocks_{at}_1_proj_in" for at in (1, 2))
    found = strengths(
        [Spectrum(first, "OFT", 0, None, nothing), Spectrum(second, "LoRA", 2, 4.0, nothing)]
    )
    assert [(one.share, one.ranks) for one in found] == [(None, None), (1.0, (2, 2, 2))]


def test_likenesses_are_those_of_the_multiplied_out_changes() -> None:
    mine, other = parts(), parts(SD1[1:], alpha=2.0)
    one, two = changes(tensors(mine)), changes(tensors(other))
    found = likenesses(compare(adapter(mine), adapter(other)).layers)
    assert (found[0].label, found[0].cosine) == ("IN01", None)
    assert found[0].norms[1] == 0
    for block, name in zip(found[1:], list(one)[1:], strict=True):
        a, b = one[name].flatten(), two[name].flatten()
        assert block.norms == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-6)
        assert block.cosine == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-6)


# Where shapes lie


@pytest.mark.parametrize(
    ("values", "high", "marks"),
    [
        ([], 1, 5),
        ([0.0], 1, 5),
        ([1.0], 1, 5),
        ([25.4], 30, 4),
        ([0.031, 0.002], 0.04, 5),
        ([720.0], 800, 5),
        ([1e-9], 1e-9, 5),
    ],
)
def test_an_axis_ends_at_a_round_number_above_all(
    values: list[float], high: float, marks: int
) -> None:
    axis = linear_axis(values)
    assert (axis.low, axis.high) == (0, pytest.approx(high))
    assert len(axis.marks) == marks
    assert axis.marks[-1] == pytest.approx(high)


def test_ranks_have_no_fractions() -> None:
    assert linear_axis([1], steps=3, least=1).marks == (0, 1)


@pytest.mark.parametrize(
    ("most", "marks"),
    [(1, (1, 2)), (2, (1, 2)), (9, (1, 2, 4, 8)), (15, (1, 2, 4, 8, 15)), (16, (1, 2, 4, 8, 16))],
)
def test_directions_double(most: int, marks: tuple[float, ...]) -> None:
    axis = doubling_axis(most)
    assert axis.marks == marks
    assert (axis.part(1), axis.part(max(most, 2))) == (0, 1)
    assert axis.part(math.sqrt(max(most, 2))) == pytest.approx(0.5)


def test_a_bar_is_as_high_as_its_value() -> None:
    found = bars(FRAME, UNITS, [Series("", BLUE, [0.25, None, 1.0, 0.0])])
    assert [(box.bottom - box.top) / 200 for box in found] == [0.25, 1.0, 0.0]
    assert {box.bottom for box in found} == {250}
    assert [(box.left + box.right) / 2 for box in found] == [150, 350, 450]


def test_bars_below_zero_hang_from_it() -> None:
    (up, down) = bars(FRAME, Axis(-1, 1, ()), [Series("", BLUE, [0.5, -1.0])])
    assert (up.top, up.bottom) == (100, 150)
    assert (down.top, down.bottom) == (150, 250)


def test_bars_of_a_block_stand_side_by_side_and_within_it() -> None:
    found = bars(FRAME, UNITS, [Series("", c, [1.0] * 3) for c in (BLUE, ORANGE)])
    for at in range(3):
        first, second = found[at], found[3 + at]
        assert first.right == pytest.approx(second.left)
        assert 100 + at * 400 / 3 < first.left < second.right < 100 + (at + 1) * 400 / 3


@pytest.mark.parametrize("blocks", [1, 2, 61, 1000])
def test_bars_are_neither_wide_nor_invisible(blocks: int) -> None:
    for box in bars(FRAME, UNITS, [Series("", BLUE, [1.0] * blocks)]):
        assert 1 <= box.right - box.left <= 64


def test_labels_never_touch() -> None:
    found = list(block_labels(FRAME, [f"IN{index:02}" for index in range(60)]))
    assert found[0].text == "IN00"
    assert 5 < len(found) < 60
    apart = [b.x - a.x for a, b in itertools.pairwise(found)]
    assert min(apart) >= 4 * 10


def test_whiskers_only_where_ranks_differ() -> None:
    (one,) = whiskers(FRAME, Axis(0, 10, ()), [(2, 2), None, (4, 9)])
    assert [y for _, y in one.points] == pytest.approx([170, 70])


def test_a_curve_goes_through_its_numbers() -> None:
    found = curve(FRAME, doubling_axis(4), Axis(0, 100, ()), [1, 2, 4], [0, 50, 100])
    assert [x for x, _ in found] == pytest.approx([100, 300, 500])
    assert [y for _, y in found] == pytest.approx([250, 150, 50])


# Pixels


def test_shapes_are_where_they_say() -> None:
    picture = draw([Box(10, 10, 20, 30, BLUE), Line(((0, 40), (50, 40)), ORANGE, 4)], 50, 50)
    assert picture.size == (50, 50)
    assert picture.getpixel((15, 20)) == BLUE
    assert picture.getpixel((25, 40)) == ORANGE
    assert picture.getpixel((25, 20)) == PAGE


def test_a_box_without_height_is_no_error() -> None:
    assert draw([Box(1, 5, 9, 5, BLUE)], 10, 10).size == (10, 10)


@pytest.mark.parametrize("text", ["", "中文 é \x00\n", "a" * 5000])
def test_any_text_can_be_written(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorakit.pictures import drawing

    for font in (ImageFont.load_default, lambda: ImageFont.load_default_imagefont()):
        monkeypatch.setattr(ImageFont, "load_default", font)
        drawing._font.cache_clear()
        assert draw([Text(5, 5, text, 12)], 40, 10).size == (40, 10)
    drawing._font.cache_clear()


def test_the_bars_of_an_inspection_can_be_read_back() -> None:
    found = spectra(adapter(parts()))
    picture = inspection_picture("style", found)
    assert (picture.size, picture.mode) == ((960, 740), "RGB")
    shares = [100 * one.share for one in strengths(found) if one.share]
    high = linear_axis(shares).high
    for seen, share in zip(heights(picture, BLUE, 130, 270), shares, strict=True):
        assert seen == pytest.approx(140 * share / high, abs=2)


def test_the_bars_of_a_comparison_can_be_read_back() -> None:
    one, two = adapter(parts()), adapter(parts(alpha=1.0))
    found = compare(one, two)
    picture = comparison_picture(("one", "two"), found)
    assert picture.size == (960, 600)
    blocks = likenesses(found.layers)
    for seen, block in zip(heights(picture, GREEN, 130, 310), blocks, strict=True):
        assert block.cosine is not None
        assert seen == pytest.approx(180 * block.cosine, abs=2)
    high = linear_axis([norm for block in blocks for norm in block.norms]).high
    for side, colour in enumerate((BLUE, ORANGE)):
        for seen, block in zip(heights(picture, colour, 384, 560), blocks, strict=True):
            assert seen == pytest.approx(176 * block.norms[side] / high, abs=2)


LAYER = "diffusion_model.blocks.0.q"
ODD = {
    **{kind: {f"{LAYER}.{key}": t for key, t in held.items()} for kind, held in kinds("linear").items()},
    "zero": {key: t * 0 for key, t in tensors(parts()).items()},
    "rank 1": tensors([Part(rank=1)]),
    "no blocks": {key.replace("input_blocks", "parts"): t for key, t in tensors(parts()).items()},
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_every_kind_has_a_picture(kind: str) -> None:
    assert inspection_picture("a" * 200, spectra(read(ODD[kind]))).size == (960, 740)


def test_what_cannot_be_compared_by_direction_has_a_picture() -> None:
    found = compare(read(ODD["zero"]), adapter(parts()))
    assert comparison_picture(("zero", "one"), found).size == (960, 600)


def test_the_hosts_image_has_the_pictures_levels() -> None:
    image = as_image(draw([Box(0, 0, 4, 6, BLUE)], 8, 6))
    assert (image.shape, image.dtype) == ((1, 6, 8, 3), torch.float32)
    torch.testing.assert_close(image[0, 2, 1] * 255, torch.tensor(BLUE, dtype=torch.float32))
    torch.testing.assert_close(image[0, 5, 7] * 255, torch.tensor(PAGE, dtype=torch.float32))


# The command line


def test_commands_draw(tmp_path: Path) -> None:
    one, two = (
        written(tmp_path / f"{name}.safetensors", tensors(parts(alpha=alpha)))
        for name, alpha in (("one", 1.0), ("two", 2.0))
    )
    drawings = {
        ("info", one): (960, 740),
        ("compare", one, two): (960, 600),
        ("compare", *tiny_pair(tmp_path)): (960, 520),
    }
    for words, size in drawings.items():
        drawn = tmp_path / "drawn.png"
        assert lorakit_here(*words, "--picture", drawn).status == 0
        with Image.open(drawn) as picture:
            assert picture.size == size
        drawn.unlink()


def test_a_picture_never_takes_the_place_of_something_else(tmp_path: Path) -> None:
    one = written(tmp_path / "one.safetensors", tensors(parts()))
    before = one.read_bytes()
    run = lorakit_here("compare", one, one, "--picture", one)
    assert (run.status, one.read_bytes()) == (2, before)
    assert "`.png`" in run.err
