"""What a file says of itself, and what becomes of that, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from ..lora_ops.adapters.metadata.thumbnail import THUMBNAIL, read_thumbnail
from ..lora_ops.text import human_size
from .layout import open_console, safe
from .wording import worded

if TYPE_CHECKING:
    from ..lora_ops import Described, MetadataEdit, Thumbnail

# Characters shown of a long text, and tags of a long list.
_SHOWN = 300
_TAGS = 12


def described_rows(told: Described) -> Iterator[tuple[str, str]]:
    """What a file says of itself, by a word for it; nothing of what it does not say."""
    tags = list(told.tags.items())
    more = f"; {len(tags) - _TAGS} more" if len(tags) > _TAGS else ""
    rows = (
        ("title", told.title),
        ("trigger words", ", ".join(told.trigger_words)),
        ("preferred weight", "" if told.preferred_weight is None else f"{told.preferred_weight:g}"),
        ("usage hint", told.usage_hint),
        ("description", told.description),
        ("base model", told.base_model),
        ("author", told.author),
        ("licence", told.licence),
        ("labels", ", ".join(told.labels)),
        ("training", "; ".join(f"{name}: {text}" for name, text in told.training.items())),
        ("training tags", "; ".join(f"{tag}: {n}" for tag, n in tags[:_TAGS]) + more),
        ("comment", told.comment),
        ("notes", told.notes),
        ("thumbnail", "" if told.thumbnail is None else _picture(told.thumbnail)),
    )
    for name, text in rows:
        if text:
            yield name, shortened(text)


def show_metadata(metadata: Mapping[str, str]) -> None:
    """Print all entries, long ones shortened, a picture as what it is."""
    table = Table.grid("", "", padding=(0, 3, 0, 0))
    for key in sorted(metadata):
        table.add_row(safe(key), safe(_shown(metadata, key)))
    open_console().print(table if metadata else "the file has no metadata")


def show_edit(
    edit: MetadataEdit,
    before: Mapping[str, str],
    *,
    size: int | None = None,
    notes: tuple[str, ...] = (),
) -> None:
    """Print what becomes, or became, of a file's entries.

    Args:
        edit: What does.
        before: The entries as they were.
        size: Of the file that was written.
        notes: What turned out on the way.
    """
    console = open_console()
    table = Table.grid("", "", "", padding=(0, 3, 0, 0))
    for word, keys in (("add", edit.added), ("change", edit.changed), ("remove", edit.removed)):
        entries = before if word == "remove" else edit.metadata
        for key in keys:
            if key in entries:  # a hash that is added has its own line
                table.add_row(word, safe(key), safe(_shown(entries, key, 80)))
    for key in edit.hash_keys:
        table.add_row("hash", safe(key), "of the data, true")
    if table.row_count:
        console.print(table)
    for note in (*edit.notes, *notes):
        console.print(f"note: {safe(worded(note))}")
    if size is not None:
        number = len(edit.metadata) + len(edit.hash_keys)
        console.print(f"{number} {'entry' if number == 1 else 'entries'}, {human_size(size)}")


def shortened(text: str, most: int = _SHOWN) -> str:
    """The beginning of a long text, and how long it is."""
    if len(text) <= most:
        return text
    return f"{text[:most]}… ({len(text)} characters)"


def _shown(metadata: Mapping[str, str], key: str, most: int = _SHOWN) -> str:
    """An entry, as long as it fits; a picture as what it is."""
    thumbnail = read_thumbnail(metadata) if key == THUMBNAIL else None
    return shortened(metadata[key], most) if thumbnail is None else _picture(thumbnail)


def _picture(thumbnail: Thumbnail) -> str:
    return f"{thumbnail.type}, {human_size(len(thumbnail.data))}"
