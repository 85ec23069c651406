"""Reports for machines: one JSON document, in a file or alone on stdout."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from ..lora_ops import ArgumentError
from ..lora_ops.files import check_name, write_whole
from ..lora_ops.files.reading.folder import ADAPTER_CONFIG
from .wording import worded

STDOUT = "-"
# Fields of skips and findings that are sentences.
_SAID = ("reason", "message", "cure")


def check_json(json_to: str | None, inputs: Iterable[Path], output: Path | None = None) -> None:
    """Refuse, before the work, a name under which the report could not, or must not, be written.

    Args:
        json_to: A file, `-` for stdout, None for no JSON.
        inputs: Files that are read, an index of shards among them.
        output: What the command is to write besides: a file, or a folder with a configuration.

    Raises:
        ArgumentError: It does not end in `.json`, is one of the inputs or the output, is no
            regular file, or has no place.
    """
    if json_to is None or json_to == STDOUT:
        return
    path = Path(json_to)
    # A checkpoint must never be lost to a report because two arguments were swapped.
    if path.suffix.lower() != ".json":
        raise ArgumentError("a report must end in `.json`; `-` is stdout", path=path)
    check_name(path, replace=True)
    if not path.parent.is_dir():
        raise ArgumentError(f"the folder `{path.parent}` does not exist; make it first", path=path)
    if path.exists() and any(one.exists() and path.samefile(one) for one in inputs):
        raise ArgumentError(
            "the report is the same file as an input; choose another name", path=path
        )
    outputs = () if output is None else (output, output / ADAPTER_CONFIG)
    if path.absolute() in [one.absolute() for one in outputs]:
        raise ArgumentError(
            "the report is the same file as the output; choose another name", path=path
        )


def write_json(content: Mapping[str, object], json_to: str | None) -> bool:
    """Write JSON where it was asked for; True if that is stdout, which then holds nothing else.

    Raises:
        WriteError: The file could not be written.
    """
    if json_to is None:
        return False
    text = (
        json.dumps(_finite(worded_report(content)), indent=1, ensure_ascii=False, allow_nan=False)
        + "\n"
    )
    if json_to == STDOUT:
        sys.stdout.write(text)
        return True
    write_whole(Path(json_to), text.encode("utf-8", "backslashreplace"), replace=True)
    return False


def worded_report(content: Mapping[str, object]) -> dict[str, object]:
    """Return a report with what the core says in the command line's words; what files say stays."""
    found = dict(content)
    if notes := cast("Sequence[str]", content.get("notes", ())):
        found["notes"] = [worded(note) for note in notes]
    for name in ("skips", "findings"):
        if rows := cast("Sequence[Mapping[str, str]]", content.get(name, ())):
            found[name] = [
                {key: worded(text) if key in _SAID else text for key, text in row.items()}
                for row in rows
            ]
    return found


def _finite(value: object) -> object:
    """The same with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in cast("list[object]", value)]
    return value
