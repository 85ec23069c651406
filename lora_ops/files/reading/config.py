"""What stands beside a model's weights: the configuration that Hugging Face's programs make it from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from ...errors import FormatError
from ..base import is_file, is_folder, read_errors

CONFIG = "config.json"


def read_config(path: Path) -> dict[str, Any]:
    """Return the fields of a `config.json`; none where there is no such file, or no JSON object in it.

    Raises:
        FormatError: It cannot be read as JSON.
    """
    if not is_file(path):
        return {}
    try:
        with read_errors(path):
            document: object = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"cannot be read as JSON: {error}", path=path) from error
    return cast("dict[str, Any]", document) if isinstance(document, dict) else {}


def model_config(path: str | Path) -> dict[str, Any]:
    """Return what the `config.json` of a model says; nothing where there is none.

    Args:
        path: What the model was opened by: its folder, or a file in it.

    Raises:
        FormatError: It cannot be read as JSON.
    """
    place = Path(path)
    return read_config((place if is_folder(place) else place.parent) / CONFIG)
