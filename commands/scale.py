"""lorakit scale."""

from __future__ import annotations

from pathlib import Path

import click

from ..version import __version__
from .options import (
    PATH,
    blocks_option,
    clear_errors,
    foretell,
    output_option,
    result_options,
    tell,
    where_option,
)


@click.command()
@click.argument("lora", type=PATH)
@output_option
@click.option(
    "-s",
    "--strength",
    type=float,
    default=1.0,
    help="Factor on the whole LoRA; 1 is all of it, negative turns it around.",
)
@blocks_option
@where_option
@result_options
def scale(
    lora: Path,
    output: Path,
    strength: float,
    blocks: str | None,
    where: tuple[str, ...],
    force: bool,
    dry_run: bool,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Write LORA at other strengths: as a whole, by block, by name.

    The strength goes into alpha, so no number of the factors changes. Layers of strength 0 are
    left out. A LORA in PEFT's format becomes a folder of PEFT where the output is no .safetensors.
    """
    with clear_errors():
        from ..lora_ops import Ingredient, open_source, plan_scale_file, scale_file
        from ..terminal.as_json import check_json
        from ..terminal.edits import show_strengths
        from ..terminal.progress import progress_bar

        with open_source(lora) as source:
            check_json(json_to, source.paths, output)
            ingredient = Ingredient(source, strength, blocks, where)
            if dry_run:
                plan = plan_scale_file(ingredient, output, force=force)
                foretell(plan.preview(), json_to=json_to)
                return
            with progress_bar("scaling", unit="layers") as progress:
                report = scale_file(
                    ingredient,
                    output,
                    force=force,
                    version=__version__,
                    progress=progress,
                )
        tell(report, show_strengths, json_to=json_to, verbose=verbose, output=output)
