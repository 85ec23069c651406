"""Pictures of people's own: read with suspicion, and made the thumbnail of a file."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image, ImageOps

from ..lora_ops.adapters.metadata.sidecar import Sidecar
from ..lora_ops.adapters.metadata.thumbnail import THUMBNAIL_SIDE, Thumbnail
from ..lora_ops.errors import ArgumentError

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# More pixels would take the machine's memory: of a stranger's picture, and of one that was chosen.
_MOST, _CHOSEN = 1 << 24, 1 << 27
_QUALITY = 88
# What Pillow raises at bytes that are no picture, or half of one.
_UNREADABLE = (
    *(OSError, ValueError, SyntaxError, IndexError, TypeError, EOFError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


def make_thumbnail(picture: Image.Image) -> Thumbnail:
    """Return a picture as the model specification wants it: a square JPEG of at most 256x256.

    What is longer is cut at both ends, what is smaller stays so.
    """
    side = min(THUMBNAIL_SIDE, *picture.size)
    content = io.BytesIO()
    square = ImageOps.fit(_flat(picture), (side, side), Image.Resampling.LANCZOS)
    square.save(content, format="jpeg", quality=_QUALITY, optimize=True)
    return Thumbnail("image/jpeg", content.getvalue())


def read_picture(data: bytes, most: int = _MOST) -> Image.Image | None:
    """Return a picture in memory as RGB; None for bytes that are none.

    Args:
        data: Of a file of any usual kind.
        most: Pixels that it may have.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damage that does not keep the picture from being seen
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                if picture.width * picture.height > most:
                    return None
                return _flat(ImageOps.exif_transpose(picture))
        except _UNREADABLE:
            return None


def open_picture(path: Path) -> Image.Image:
    """Return a picture file as RGB.

    Raises:
        ArgumentError: There is none, or it is no picture.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArgumentError(f"cannot be read: {error.strerror}", path=path) from error
    picture = read_picture(data, _CHOSEN)
    if picture is None:
        raise ArgumentError(
            "is no picture that can be read; give a PNG, JPEG or WebP file", path=path
        )
    return picture


def picture_of(thumbnail: Thumbnail | None, sidecar: Sidecar | None = None) -> Image.Image | None:
    """Return the picture of a file: that in its metadata, else the one beside it; None without any."""
    found = read_picture(thumbnail.data) if thumbnail is not None else None
    if found is None and sidecar is not None and sidecar.picture is not None:
        try:
            found = open_picture(sidecar.picture)
        except ArgumentError:  # nobody asked for it
            return None
    return found


def _flat(picture: Image.Image) -> Image.Image:
    """RGB, on white where it can be seen through."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return picture.convert("RGB")
