"""lorakit compare."""

from __future__ import annotations

from pathlib import Path

import click

from .options import (
    PATH,
    check_picture,
    clear_errors,
    json_option,
    picture_option,
    save_picture,
    tell,
    verbose_option,
)


@click.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@picture_option
@verbose_option
@json_option
def compare(
    first: Path, second: Path, picture: Path | None, verbose: bool, json_to: str | None
) -> None:
    """Say how alike the changes of two LoRAs are.

    Cosine, distance and norms of their changes, by layer and in total, across formats and ranks.
    The distance is that of SECOND from FIRST, as a share of the size of FIRST.
    """
    with clear_errors():
        from ..lora_ops import compare as compare_adapters
        from ..lora_ops import decode, open_source
        from ..lora_ops.run.inputs import unchanged
        from ..terminal.as_json import check_json
        from ..terminal.edits import show_comparison
        from ..terminal.progress import progress_bar

        with open_source(first) as one, open_source(second) as other:
            inputs = [*one.paths, *other.paths]
            check_json(json_to, inputs)
            check_picture(picture, inputs)
            with unchanged(one, other), progress_bar("comparing", unit="layers") as progress:
                found = compare_adapters(
                    decode(one), decode(other), names=(one.name, other.name), progress=progress
                )
        if picture is not None:
            from ..pictures import comparison_picture

            save_picture(comparison_picture((first.stem, second.stem), found), picture)
        tell(found, show_comparison, json_to=json_to, verbose=verbose)
