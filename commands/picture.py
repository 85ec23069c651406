"""The option --picture, and what becomes of it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PATH

if TYPE_CHECKING:
    from PIL.Image import Image

picture_option = click.option(
    "--picture",
    type=PATH,
    metavar="FILE",
    help="Draw it too, by block, into a .png file.  [default: no picture]",
)


def check_picture(path: Path | None, inputs: Iterable[Path]) -> None:
    """Refuse, before the work, a name under which a picture could not, or must not, be written.

    Raises:
        ArgumentError: It does not end in `.png`, is one of the inputs, or has no place.
    """
    from ..lora_ops.files import check_output

    if path is not None:
        check_output(path, list(inputs), force=True, suffix=".png")


def save_picture(picture: Image, path: Path) -> None:
    """Write a picture.

    Raises:
        WriteError: The disk is full, or the like.
    """
    from ..lora_ops.files import write_whole

    content = io.BytesIO()
    picture.save(content, format="png")
    write_whole(path, content.getvalue(), replace=True)
