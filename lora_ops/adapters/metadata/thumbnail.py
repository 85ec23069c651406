"""The picture in a file's metadata: `modelspec.thumbnail`, a data URL.

Source: https://github.com/Stability-AI/ModelSpec, 1.0.1, which recommends a JPEG of 256x256. What is in the
bytes is looked at by those who show it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

THUMBNAIL = "modelspec.thumbnail"
#: Pixels of a side that the specification recommends.
THUMBNAIL_SIDE = 256
_URL = re.compile(r"data:(image/[a-z0-9.+-]{1,40})(?:;[a-z]+=[^;,]{1,40})*;base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture as it is stored.

    Attributes:
        type: What it says it is: image/jpeg.
        data: The bytes of a picture file, or of what a stranger wrote there.
    """

    type: str
    data: bytes

    @property
    def url(self) -> str:
        """The text that stands in the metadata."""
        return f"data:{self.type};base64,{base64.b64encode(self.data).decode()}"


def read_thumbnail(metadata: Mapping[str, str]) -> Thumbnail | None:
    """Return the picture in a file's metadata; None where there is none, or no data URL."""
    text: object = metadata.get(THUMBNAIL)
    found = _URL.match(text) if isinstance(text, str) else None
    if found is None:
        return None
    try:
        # Some programs break the lines.
        data = base64.b64decode("".join(found.string[found.end() :].split()), validate=True)
    except (ValueError, binascii.Error):
        return None
    return Thumbnail(found[1].lower(), data) if data else None
