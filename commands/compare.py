"""lorakit compare."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from .options import (
    PATH,
    Reported,
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
    """Say how alike two LoRAs are, or two checkpoints.

    Of LoRAs: cosine, distance and norms of their changes, by layer and in total, across formats and
    ranks. The distance is that of SECOND from FIRST, as a share of the size of FIRST.

    Of checkpoints: size of the difference as a share of FIRST, and cosine of the weights, by
    parameter, block and component, across names and number formats; what is equal, what is in one alone.
    """
    with clear_errors():
        from ..lora_ops import compare as compare_adapters
        from ..lora_ops import compare_checkpoints, decode, open_source
        from ..lora_ops.adapters.checkpoint import is_checkpoint
        from ..lora_ops.run.inputs import unchanged
        from ..pictures import checkpoints_picture, comparison_picture
        from ..terminal.as_json import check_json
        from ..terminal.checkpoints import show_checkpoints
        from ..terminal.edits import show_comparison
        from ..terminal.progress import progress_bar

        found: Reported
        show: Callable[..., None] = show_comparison
        with open_source(first) as one, open_source(second) as other:
            inputs = [*one.paths, *other.paths]
            check_json(json_to, inputs)
            check_picture(picture, inputs)
            names, stems = (one.name, other.name), (first.stem, second.stem)
            with unchanged(one, other), progress_bar("comparing", unit="layers") as progress:
                if is_checkpoint(one) and is_checkpoint(other):
                    models = compare_checkpoints(one, other, progress=progress)
                    found, draw = models, partial(checkpoints_picture, stems, models)
                    show = partial(show_checkpoints, names=names)
                else:
                    adapters = (decode(one, control=True), decode(other, control=True))
                    changes = compare_adapters(*adapters, names=names, progress=progress)
                    found, draw = changes, partial(comparison_picture, stems, changes)
        if picture is not None:
            save_picture(draw(), picture)
        tell(found, show, json_to=json_to, verbose=verbose)
