"""What a file says of itself, as nodes hand it on: outputs that several have, and lines of their reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..host.api import io

if TYPE_CHECKING:
    from ...lora_ops import Described, Thumbnail

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

    entries = dict(metadata)
    if told.thumbnail is not None:  # a wall of letters to whoever reads it
        entries[THUMBNAIL] = said_thumbnail(told.thumbnail)
    return ", ".join(told.trigger_words), json.dumps(entries, ensure_ascii=False, indent=1)


def said_thumbnail(thumbnail: Thumbnail) -> str:
    """A picture in words."""
    from ...lora_ops.text import human_size

    return f"{thumbnail.type}, {human_size(len(thumbnail.data))}"


def said_lines(told: Described) -> list[str]:
    """Lines of a report, few enough to stand on a node; none for what is not said."""
    from ...lora_ops.text import plain

    tags = [f"{tag} ({number})" for tag, number in list(told.tags.items())[:_TAGS]]
    training = {**told.training, "comment": told.comment}
    rows = (
        ("trigger words", ", ".join(told.trigger_words)),
        ("title", told.title),
        ("base model", told.base_model),
        ("preferred weight", "" if told.preferred_weight is None else f"{told.preferred_weight:g}"),
        ("description", " · ".join(filter(None, (told.usage_hint, told.description)))),
        ("author", " · ".join(filter(None, (told.author, told.licence, ", ".join(told.labels))))),
        ("training", ", ".join(f"{name} {text}" for name, text in training.items() if text)),
        ("training tags", ", ".join(tags)),
        ("notes", told.notes),
    )
    short = {name: text if len(text) <= _LONG else f"{text[:_LONG]}…" for name, text in rows}
    return [f"{name}: {plain(text)}" for name, text in short.items() if text]
