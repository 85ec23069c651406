"""Pictures of people's own: read whatever they are, made small, and never a reason to fail."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lorakit.lora_ops import ArgumentError, Sidecar, Thumbnail
from lorakit.pictures.thumbnails import make_thumbnail, open_picture, picture_of, read_picture


def stored(picture: Image.Image, kind: str, **more: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, format=kind, **more)  # type: ignore[arg-type]
    return content.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


RED = Image.new("RGB", (40, 30), (255, 0, 0))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp"])
def test_pictures_of_all_kinds_are_read(kind: str) -> None:
    found = read_picture(stored(RED, kind))
    assert found is not None
    assert (found.mode, found.size) == ("RGB", (40, 30))
    red, green, blue = found.getpixel((20, 15))  # type: ignore[misc]
    assert red > 250
    assert green + blue < 10


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_all_modes_become_rgb(mode: str) -> None:
    found = read_picture(stored(Image.new(mode, (8, 8)), "jpeg" if mode == "CMYK" else "png"))
    assert found is not None
    assert make_thumbnail(found).type == "image/jpeg"


def test_a_photograph_stands_upright() -> None:
    """Cameras store how they were held."""
    turned = Image.Exif()
    turned[0x0112] = 6
    found = read_picture(stored(RED, "jpeg", exif=turned))
    assert found is not None
    assert found.size == (30, 40)


@pytest.mark.parametrize("size", [(1000, 400), (256, 256), (100, 60), (1, 9)])
def test_a_thumbnail_is_square_and_small(size: tuple[int, int]) -> None:
    made = make_thumbnail(Image.effect_noise(size, 80))
    found = read_picture(made.data)
    assert found is not None
    assert found.size == (min(*size, 256),) * 2
    assert len(made.url) < 100_000


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"x", b"\x89PNG\r\n\x1a\n", stored(RED, "png")[:60], stored(RED, "jpeg")[:200]),
        *(png(100_000, 100_000), png(12_000, 12_000), png(2**31 - 1, 1), png(0, 5), png(9, 9)),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_what_is_no_picture_is_none(data: bytes, tmp_path: Path) -> None:
    assert read_picture(data) is None
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(ArgumentError, match=r"a\.png: is no picture that can be read; give a PNG"):
        open_picture(path)
    assert picture_of(Thumbnail("image/png", data), Sidecar(picture=path)) is None


@given(st.data())
def test_a_damaged_picture_never_fails(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["png", "jpeg", "webp", "gif"]))
    content = bytearray(stored(RED, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    found = read_picture(bytes(content))
    assert found is None or found.mode == "RGB"


def test_the_picture_in_the_file_comes_before_the_one_beside_it(tmp_path: Path) -> None:
    beside = tmp_path / "a.png"
    beside.write_bytes(stored(RED.resize((5, 5)), "png"))
    sidecar = Sidecar(picture=beside)
    inside = Thumbnail("image/png", stored(RED, "png"))
    sizes = [
        None if found is None else found.size
        for found in (
            picture_of(inside, sidecar),
            picture_of(Thumbnail("image/png", b"x"), sidecar),
            picture_of(None, sidecar),
            picture_of(None, Sidecar(picture=tmp_path / "gone.png")),
            picture_of(None),
        )
    ]
    assert sizes == [(40, 30), (5, 5), (5, 5), None, None]
