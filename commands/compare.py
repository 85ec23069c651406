"""lorakit compare."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from .options import (
    PATH,
    Reported,
    clear_errors,
    json_option,
    tell,
    verbose_option,
)
from .picture import check_picture, picture_option, save_picture


@click.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.argument("more", type=PATH, nargs=-1)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    help="Of three LoRAs or more: of the elements of each change, how many count as large.  [default: 0.2]",
)
@picture_option
@verbose_option
@json_option
def compare(
    first: Path,
    second: Path,
    more: tuple[Path, ...],
    share: float | None,
    picture: Path | None,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Say how alike LoRAs are, or two checkpoints.

    Of two LoRAs: cosine, distance and norms of their changes, by layer and in total, across formats and
    ranks. The distance is that of SECOND from FIRST, as a share of the size of FIRST.

    Of three or more: cosines of all pairs, in total and by block, and how they are in each other's way:
    directions and large elements that they share, signs that disagree, and what the size of their sum is.

    Of two checkpoints: size of the difference as a share of FIRST, and cosine of the weights, by
    parameter, block and component, across names and number formats; what is equal, what is in one alone.
    """
    with clear_errors(), contextlib.ExitStack() as stack:
        from ..lora_ops import (
            ArgumentError,
            compare_checkpoints,
            compare_several,
            decode,
            open_source,
        )
        from ..lora_ops import compare as compare_adapters
        from ..lora_ops.adapters.checkpoint import is_checkpoint
        from ..lora_ops.run.inputs import unchanged
        from ..pictures import checkpoints_picture, comparison_picture, conflict_picture
        from ..terminal.as_json import check_json
        from ..terminal.checkpoints import show_checkpoints
        from ..terminal.conflict import show_conflict
        from ..terminal.edits import show_comparison
        from ..terminal.progress import progress_bar

        files = (first, second, *more)
        found: Reported
        show: Callable[..., None] = show_comparison
        opened = [stack.enter_context(open_source(path)) for path in files]
        inputs = [path for one in opened for path in one.paths]
        check_json(json_to, inputs)
        check_picture(picture, inputs)
        names, stems = tuple(one.name for one in opened), tuple(path.stem for path in files)
        models = [is_checkpoint(one) for one in opened]
        if len(files) > 2 and any(models):
            held = names[models.index(True)]
            raise ArgumentError(f"{held} is a checkpoint: compare takes two of them, or LoRAs")
        if len(files) == 2 and share is not None:
            raise ArgumentError("--share is of three LoRAs or more")
        with unchanged(*opened), progress_bar("comparing", unit="layers") as progress:
            if all(models):
                one, other = opened
                distances = compare_checkpoints(one, other, progress=progress)
                found, draw = distances, partial(checkpoints_picture, _two(stems), distances)
                show = partial(show_checkpoints, names=_two(names))
            else:
                adapters = [decode(one, control=True) for one in opened]
                if len(adapters) == 2:
                    changes = compare_adapters(*adapters, names=_two(names), progress=progress)
                    found, draw = changes, partial(comparison_picture, _two(stems), changes)
                else:
                    conflict = compare_several(
                        adapters, names=names, share=share or 0.2, progress=progress
                    )
                    found, draw = conflict, partial(conflict_picture, stems, conflict)
                    show = show_conflict
        if picture is not None:
            save_picture(draw(), picture)
        tell(found, show, json_to=json_to, verbose=verbose)


def _two(names: tuple[str, ...]) -> tuple[str, str]:
    first, second = names
    return first, second
