"""lorakit compare."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, clear_errors, json_option, verbose_option


@click.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@verbose_option
@json_option
def compare(first: Path, second: Path, verbose: bool, json_to: str | None) -> None:
    """Say how alike the changes of two LoRAs are.

    Cosine, distance and norms of their changes, by layer and in total, across formats and ranks.
    The distance is that of SECOND from FIRST, as a share of the size of FIRST.
    """
    with clear_errors():
        from ..lora_ops import open_source
        from ..lora_ops.compare import compare as compare_adapters
        from ..lora_ops.formats import decode
        from ..terminal.as_json import check_json, write_json
        from ..terminal.edits import show_comparison
        from ..terminal.progress import progress_bar

        with open_source(first) as one, open_source(second) as other:
            check_json(json_to, [*one.paths, *other.paths])
            with progress_bar("comparing", unit="layers") as progress:
                found = compare_adapters(
                    decode(one), decode(other), names=(one.name, other.name), progress=progress
                )
        if not write_json(found.to_dict(), json_to):
            show_comparison(found, verbose=verbose)
