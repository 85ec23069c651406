"""lorakit info."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PATH, clear_errors, json_option
from .picture import check_picture, picture_option, save_picture

if TYPE_CHECKING:
    from ..lora_ops import FileSource


@click.command()
@click.argument("file", type=PATH)
@picture_option
@json_option
def info(file: Path, picture: Path | None, json_to: str | None) -> None:
    """Say what FILE is, from its header.

    Kind, format, architecture, ranks, alphas, dtypes, metadata of any LoRA or checkpoint; title, trigger words, and
    what else it, or a .json file beside it, says for people; also embeddings, ControlNets, IP-Adapters, hypernetworks, upscalers. Weights are not read, unless
    for the picture of a LoRA: rank and energy by block, and how many directions carry it.
    """
    with clear_errors():
        from ..lora_ops import describe, described, open_source, read_sidecar
        from ..terminal.as_json import check_json, write_json
        from ..terminal.tables import show_info

        with open_source(file) as source:
            check_json(json_to, source.paths)
            check_picture(picture, source.paths)
            found = describe(source, source.spelling)
            told = described(source.metadata, read_sidecar(file))
            if picture is not None:
                _draw(source, picture)
        if not write_json({**found.to_dict(), "described": told.to_dict()}, json_to):
            show_info(found, told)


def _draw(source: FileSource, path: Path) -> None:
    """Draw where the strength of an adapter lies."""
    from ..lora_ops import decode, spectra
    from ..lora_ops.run.inputs import unchanged
    from ..pictures import inspection_picture
    from ..terminal.progress import progress_bar

    with unchanged(source), progress_bar("measuring", unit="layers") as progress:
        found = spectra(decode(source, control=True), progress=progress)
    save_picture(inspection_picture(Path(source.name).name, found), path)
