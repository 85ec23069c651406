"""lorakit metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PATH, clear_errors, dry_run_option, force_option, json_option

if TYPE_CHECKING:
    from ..lora_ops import MetadataPlan


@click.command()
@click.argument("file", type=PATH)
@click.option(
    "--set",
    "entries",
    metavar="NAME=VALUE",
    multiple=True,
    help="Set an entry: modelspec.title=…, modelspec.trigger_phrase=…, ss_training_comment=…. May be repeated.",
)
@click.option(
    "--unset",
    "removals",
    metavar="NAME",
    multiple=True,
    help="Take an entry away, or all that fit a pattern: 'ss_*'. May be repeated; --set comes after it.",
)
@click.option(
    "--thumbnail",
    type=PATH,
    metavar="PICTURE",
    help="Put a picture in: modelspec.thumbnail, the middle of it as a JPEG of at most 256x256.  "
    "[default: as it is]",
)
@click.option(
    "-o", "--output", type=PATH, help="File to write (.safetensors).  [default: show what there is]"
)
@force_option
@dry_run_option
@json_option
def metadata(
    file: Path,
    entries: tuple[str, ...],
    removals: tuple[str, ...],
    thumbnail: Path | None,
    output: Path | None,
    force: bool,
    dry_run: bool,
    json_to: str | None,
) -> None:
    """Show what FILE says of itself, or write it with other words.

    FILE is a LoRA, a checkpoint or any other safetensors file. Its tensors are copied byte for byte, and the hashes
    of them that it has are true afterwards. With --force the output may be FILE itself. --json has every entry in full.
    """
    with clear_errors():
        from ..lora_ops import ArgumentError, plan_metadata_file, read_metadata
        from ..terminal.as_json import check_json, write_json
        from ..terminal.metadata import show_edit, show_metadata

        check_json(json_to, [file, *([thumbnail] if thumbnail else [])], output)
        changes = _changes(entries, thumbnail)
        if output is None and not dry_run:
            if changes or removals:
                raise ArgumentError("nothing is written without an output; give one as `output=`")
            found = read_metadata(file)
            if not write_json({"name": str(file), "metadata": found}, json_to):
                show_metadata(found)
            return
        plan = plan_metadata_file(file, changes, removals, output=output, force=force)
        if dry_run or output is None:
            if not write_json(plan.to_dict(), json_to):
                show_edit(plan.edit, plan.metadata)
            return
        _write(plan, output, force, json_to)


def _write(plan: MetadataPlan, output: Path, force: bool, json_to: str | None) -> None:
    from ..lora_ops import edit_metadata_file
    from ..lora_ops.text import plain
    from ..terminal.as_json import write_json
    from ..terminal.metadata import show_edit
    from ..terminal.progress import progress_bar

    with progress_bar("copying", unit="bytes") as progress:
        report = edit_metadata_file(plan, output, force=force, progress=progress)
    if not write_json(report.to_dict(), json_to):
        show_edit(report.edit, plan.metadata, size=report.size, notes=report.notes)
        click.echo(f"wrote {plain(output)}")


def _changes(entries: tuple[str, ...], thumbnail: Path | None) -> dict[str, str]:
    """What --set and --thumbnail ask for."""
    from ..lora_ops import ArgumentError

    changes: dict[str, str] = {}
    for entry in entries:
        name, told, value = entry.partition("=")
        if not told:
            raise ArgumentError(f"`{entry}` sets nothing; write it as NAME=VALUE")
        changes[name.strip()] = value
    if thumbnail is not None:
        from ..lora_ops.adapters.metadata.thumbnail import THUMBNAIL
        from ..pictures.thumbnails import make_thumbnail, open_picture

        changes[THUMBNAIL] = make_thumbnail(open_picture(thumbnail)).url
    return changes
