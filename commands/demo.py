"""lorakit demo."""

from __future__ import annotations

from pathlib import Path

import click

from ..version import __version__
from .options import PATH, clear_errors


@click.command()
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("lorakit_demo"),
    help="Folder for the LoRAs, the merge and the picture.",
)
def demo(output: Path) -> None:
    """Extract and merge small sample models, draw what they do.

    Seven LoRAs from two small diffusion models, verified, applied and sampled, beside a LoRA and a DoRA
    that were trained, and a merge of two fine-tunes: ten seconds on two cores.
    """
    with clear_errors():
        from ..examples.digits.demo import MERGE, MERGED, run_demo
        from ..lora_ops.text import plain
        from ..terminal.progress import progress_bar
        from ..terminal.tables import show_demo

        with progress_bar("demo") as progress:
            columns, picture = run_demo(output, version=__version__, progress=progress)
        show_demo(columns)
        click.echo(f"wrote {plain(output / MERGED)}: {MERGE}")
        click.echo(f"wrote {plain(picture)}")
