"""Edit Metadata: what a LoRA says of itself, in other words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..form.pictures import from_image
from ..form.said import said_outputs, said_thumbnail, said_values
from ..form.schema import lines, lora_input, lora_output, report_output, reported, schema
from ..form.texts import headed
from ..form.wording import explained, worded
from ..host.api import io
from ..host.lora_model import LoraModel, as_file, said_of

_LONG = 100  # characters shown of an entry
_LINES = 10  # entries shown
#: The entry that each of the simple inputs sets.
_ENTRIES = {
    "title": "modelspec.title",
    "trigger_words": "modelspec.trigger_phrase",
    "description": "modelspec.description",
    "tags": "modelspec.tags",
}


class EditMetadata(io.ComfyNode):
    """Sets entries and takes them away; the weights stay as they are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "EditMetadata",
            "Edit Metadata",
            description="Gives a LoRA a title, trigger words, a description, tags and a thumbnail, or any other "
            "entry. Save LoRA writes them, with hashes that are true; the weights stay as they are.",
            search_aliases=["lora metadata", "trigger words", "set thumbnail", "modelspec"],
            inputs=[
                lora_input(),
                _text("title", "A name for people. Save LoRA keeps it. Empty: as it is."),
                _text(
                    "trigger_words",
                    "The words that call what it has learned, with commas. Empty: as they are.",
                    multiline=True,
                ),
                _text(
                    "description",
                    "What it is and how to use it; Markdown may be used. Empty: as it is.",
                    multiline=True,
                ),
                _text(
                    "tags", "What to file it under, with commas: style, person. Empty: as they are."
                ),
                io.Image.Input(
                    "thumbnail",
                    optional=True,
                    tooltip="A picture; its middle is kept, as a square JPEG of at most 256 pixels.",
                ),
                _text(
                    "entries",
                    "Any other entries, one NAME=VALUE a line: modelspec.author=…, modelspec.license=….",
                    multiline=True,
                ),
                _text(
                    "remove",
                    "Entries to take away, one name or pattern a line: ss_*. They go before others are set.",
                    multiline=True,
                ),
            ],
            outputs=[lora_output("The LoRA that says so."), report_output(), *said_outputs()],
        )

    @classmethod
    @explained
    def execute(
        cls,
        lora: Mapping[str, Tensor],
        title: str = "",
        trigger_words: str = "",
        description: str = "",
        tags: str = "",
        thumbnail: Tensor | None = None,
        entries: str = "",
        remove: str = "",
    ) -> io.NodeOutput:
        """Edit it.

        Raises:
            LoraOpsError: An entry that is to go is not there, or one is written wrongly.
        """
        from ...lora_ops import edit_metadata
        from ...lora_ops.adapters.metadata.thumbnail import THUMBNAIL
        from ...lora_ops.operations.metadata.plan import model_of
        from ...lora_ops.text import plain
        from ...pictures.thumbnails import make_thumbnail

        words = ", ".join(line.rstrip(", ") for line in lines(trigger_words))
        simple = dict(zip(_ENTRIES.values(), (title, words, description, tags), strict=True))
        changes = {key: text.strip() for key, text in simple.items() if text.strip()}
        if thumbnail is not None:
            changes[THUMBNAIL] = make_thumbnail(from_image(thumbnail)).url
        changes |= _pairs(entries)
        source = as_file(lora)
        edit = edit_metadata(
            source.metadata,
            changes,
            lines(remove),
            title=Path(source.name).stem,
            architecture=model_of(source),
        )
        made = LoraModel(source.tensors, source.name, edit.metadata)
        told = said_of(made)
        values = said_values(told, made.metadata)
        named = sorted((*edit.added, *edit.changed), key=lambda key: key not in changes)
        found = {key: edit.metadata[key] for key in named if key in edit.metadata}
        if THUMBNAIL in found and told.thumbnail is not None:
            found[THUMBNAIL] = said_thumbnail(told.thumbnail)
        shown = [
            *(f"{key}: gone" for key in edit.removed),
            *(f"{key}: {_short(text)}" for key, text in found.items()),
        ]
        more = [f"and {len(shown) - _LINES} more"] if len(shown) > _LINES else []
        notes = [f"note: {worded(note)}" for note in edit.notes]
        counts = f"{len(changes)} set, {len(edit.removed)} removed"
        report = headed(f"{plain(source.name)}: {counts}", *notes, *shown[:_LINES], *more)
        return reported(report, made, after=values)


def _text(name: str, tooltip: str, *, multiline: bool = False) -> io.String.Input:
    return io.String.Input(name, default="", optional=True, tooltip=tooltip, multiline=multiline)


def _pairs(text: str) -> dict[str, str]:
    """The entries of a text, one NAME=VALUE a line."""
    from ...lora_ops import ArgumentError

    found: dict[str, str] = {}
    for line in lines(text):
        name, told, value = line.partition("=")
        if not told:
            raise ArgumentError(f"`{line}` in `entries` sets nothing; write it as NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


def _short(text: str) -> str:
    from ...lora_ops.text import plain

    return plain(text if len(text) <= _LONG else f"{text[:_LONG]}…")
