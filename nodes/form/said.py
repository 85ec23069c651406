"""What a file says of itself, as nodes hand it on: outputs that several have, and lines of their reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from comfy_api.latest import io

if TYPE_CHECKING:
    from ...lora_ops import Described

_LONG = 160  # characters shown of a text
_TAGS = 8


def said_outputs() -> list[io.Output]:
    """Trigger words and metadata."""
    return [
        io.String.Output(
            display_name="trigger_words",
            tooltip="The words that call what it has learned, joined by commas, for a prompt: those that its "
            "maker or a file beside it names, else the most frequent tags of its training.",
        ),
        io.String.Output(
            display_name="metadata",
            tooltip="All that the file says of itself, as JSON; of a thumbnail, its type and size.",
        ),
    ]


def said_values(told: Described, metadata: Mapping[str, str]) -> tuple[str, str]:
    """Values of `said_outputs`."""
    from ...lora_ops.adapters.metadata.thumbnail import THUMBNAIL
    from ...lora_ops.text import human_size

    entries = dict(metadata)
    if told.thumbnail is not None:  # a wall of letters to whoever reads it
        entries[THUMBNAIL] = f"{told.thumbnail.type}, {human_size(len(told.thumbnail.data))}"
    return ", ".join(told.trigger_words), json.dumps(entries, ensure_ascii=False, indent=1)


def said_lines(told: Described) -> list[str]:
    """Lines of a report; none for what is not said."""
    from ...lora_ops.text import human_size, plain

    tags = [f"{tag} ({number})" for tag, number in list(told.tags.items())[:_TAGS]]
    picture = told.thumbnail
    rows = (
        ("trigger words", ", ".join(told.trigger_words)),
        ("title", told.title),
        ("base model", told.base_model),
        ("preferred weight", "" if told.preferred_weight is None else f"{told.preferred_weight:g}"),
        ("usage hint", told.usage_hint),
        ("description", told.description),
        ("author", told.author),
        ("licence", told.licence),
        ("labels", ", ".join(told.labels)),
        ("training", ", ".join(f"{name} {text}" for name, text in told.training.items())),
        ("training tags", ", ".join(tags)),
        ("comment", told.comment),
        ("notes", told.notes),
        ("thumbnail", f"{picture.type}, {human_size(len(picture.data))}" if picture else ""),
    )
    short = {name: text if len(text) <= _LONG else f"{text[:_LONG]}…" for name, text in rows}
    return [f"{name}: {plain(text)}" for name, text in short.items() if text]
