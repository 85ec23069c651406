"""lorakit info."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, clear_errors, json_option


@click.command()
@click.argument("file", type=PATH)
@json_option
def info(file: Path, json_to: str | None) -> None:
    """Say what FILE is, from its header.

    Kind, format, architecture, ranks, alphas, dtypes, metadata of any LoRA or checkpoint. Its
    weights are not read.
    """
    with clear_errors():
        from ..lora_ops import describe, open_source
        from ..terminal.as_json import check_json, write_json
        from ..terminal.tables import show_info

        with open_source(file) as source:
            check_json(json_to, source.paths)
            described = describe(source)
        if not write_json(described.to_dict(), json_to):
            show_info(described)
