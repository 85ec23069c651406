"""lorakit lint."""

from __future__ import annotations

from pathlib import Path

import click

from .hash_cache import hash_cache_option
from .options import PATH, clear_errors, json_option


@click.command()
@click.argument("lora", type=PATH)
@click.option(
    *("--for", "programs"),
    type=click.Choice(["comfy", "forge", "diffusers", "kohya"]),
    multiple=True,
    help="Program that must load it; may be repeated.  [default: all four, as a hint]",
)
@click.option(
    *("--architecture", "architecture"),
    metavar="NAME",
    help="The model's that it is for, such as sdxl, flux or wan.  [default: told by the names]",
)
@click.option("--headers-only", is_flag=True, help="Do not read the numbers: no NaN, zeros, hash.")
@hash_cache_option
@json_option
def lint(
    lora: Path,
    programs: tuple[str, ...],
    architecture: str | None,
    headers_only: bool,
    json_to: str | None,
) -> None:
    """Say what is odd about LORA, and which programs load it.

    How many of its layers ComfyUI, Forge, diffusers and kohya's tools load, at what scale, what
    they pass over, and the command that mends it; and of the file itself alphas, dtypes, names,
    NaN, zeros, hash and metadata. No program is started. docs/lint.md has every code.

    Exit status: 0 with notes and warnings at most, 1 with an error. That a program does not load
    all layers as they are meant is an error where --for names it, else a warning.
    """
    with clear_errors():
        from ..lora_ops import lint as lint_source
        from ..lora_ops import open_source
        from ..terminal.as_json import check_json, write_json
        from ..terminal.lint import show_lint
        from ..terminal.progress import progress_bar

        with open_source(lora) as source:
            check_json(json_to, source.paths)
            with progress_bar("reading", unit="layers") as progress:
                found = lint_source(
                    source,
                    programs,
                    architecture=architecture,
                    headers_only=headers_only,
                    progress=progress,
                )
        if not write_json(found.to_dict(), json_to):
            show_lint(found)
    if found.has_errors:
        click.get_current_context().exit(1)
