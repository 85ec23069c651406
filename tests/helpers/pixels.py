"""Numbers read back from the pixels of a picture."""

from __future__ import annotations

from PIL import Image


def heights(picture: Image.Image, colour: tuple[int, int, int], top: int, bottom: int) -> list[int]:
    """How many pixels of a colour each run of columns has."""
    found: list[int] = []
    was = 0
    for x in range(picture.width):
        now = sum(picture.getpixel((x, y)) == colour for y in range(top, bottom))
        if now and not was:
            found.append(now)
        elif now:
            found[-1] = max(found[-1], now)
        was = now
    return found
