"""lorakit verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .hash_cache import hash_cache_option
from .options import (
    PATH,
    clear_errors,
    dora_option,
    json_option,
    verbose_option,
)

if TYPE_CHECKING:
    from ..lora_ops import Convention


@click.command()
@click.argument("base", type=PATH)
@click.argument("tuned", type=PATH)
@click.argument("lora", type=PATH)
@click.option("--strength", type=float, default=1.0, help="Factor on the LoRA; 1 is all of it.")
@dora_option
@click.option(
    "--allow-other",
    is_flag=True,
    help="Go on where BASE or TUNED is another file than LORA records.",
)
@hash_cache_option
@verbose_option
@json_option
def verify(
    base: Path,
    tuned: Path,
    lora: Path,
    strength: float,
    dora: Convention,
    allow_other: bool,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Recompute the true error of LORA, from the files alone.

    How close BASE with LORA comes to TUNED, layer by layer. If LORA records hashes, of its own data
    or of the checkpoints that it was extracted from, they are compared with the files: one that
    differs is an error.
    """
    with clear_errors():
        from ..lora_ops import open_source
        from ..lora_ops import verify as verify_lora
        from ..terminal.as_json import check_json, write_json
        from ..terminal.progress import progress_bar
        from ..terminal.tables import show_report

        with (
            open_source(base) as base_source,
            open_source(tuned) as tuned_source,
            open_source(lora) as lora_source,
        ):
            check_json(json_to, [*base_source.paths, *tuned_source.paths, *lora_source.paths])
            with progress_bar("verifying") as progress:
                report = verify_lora(
                    base_source,
                    tuned_source,
                    lora_source,
                    strength=strength,
                    convention=dora,
                    allow_other=allow_other,
                    progress=progress,
                )
        if not write_json(report.to_dict(), json_to):
            show_report(report, verbose=verbose)
