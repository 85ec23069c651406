"""lorakit convert."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from .. import __version__
from .options import (
    PATH,
    RULES_HELP,
    clear_errors,
    device_option,
    dtype_option,
    force_option,
    json_option,
    parse_dtype,
    parse_placement,
    verbose_option,
    vram_option,
)


@click.command()
@click.argument("lora", type=PATH)
@click.option(
    *("-o", "--output"),
    type=PATH,
    required=True,
    help="LoRA file to write (.safetensors); for peft the folder to make.",
)
@click.option(
    *("--format", "format_"),
    type=click.Choice(["kohya", "comfy", "diffusers", "peft"]),
    required=True,
    help="Names in the file: as kohya's scripts, ComfyUI, diffusers or PEFT write them.",
)
@click.option(
    *("--architecture", "architecture"),
    metavar="NAME",
    help="The model's, such as sdxl, flux or wan.  [default: told by the names]",
)
@click.option(
    "--reference",
    type=PATH,
    metavar="CHECKPOINT",
    help="The model it is for: gives names with underscores their dots back.  [default: none]",
)
@click.option(
    *("-r", "--rank", "rule"),
    help="For layers that are joined from several. "
    + RULES_HELP
    + "  [default: all ranks together]",
)
@dtype_option("each layer's own")
@device_option
@vram_option
@force_option
@verbose_option
@json_option
def convert(
    lora: Path,
    output: Path,
    format_: str,
    architecture: str | None,
    reference: Path | None,
    rule: str | None,
    dtype: str | None,
    device: str,
    vram: str | None,
    force: bool,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Write LORA with the names of another program.

    Projections that one program splits and the other fuses are cut or joined, exactly; the
    changes stay the same.
    """
    with clear_errors(), contextlib.ExitStack() as stack:
        from ..lora_ops import open_source
        from ..lora_ops.convert_file import convert_file
        from ..terminal.as_json import check_json, write_json
        from ..terminal.edits import show_converted
        from ..terminal.progress import progress_bar
        from ..terminal.text import plain

        placement = parse_placement(device, vram)
        source = stack.enter_context(open_source(lora))
        model = stack.enter_context(open_source(reference)) if reference is not None else None
        check_json(json_to, [*source.paths, *(model.paths if model else ())])
        with progress_bar("converting", unit="layers") as progress:
            report = convert_file(
                source,
                output,
                format_,
                architecture=architecture,
                reference=model,
                rule=rule,
                dtype=parse_dtype(dtype),
                placement=placement,
                force=force,
                version=__version__,
                progress=progress,
            )
        if not write_json(report.to_dict(), json_to):
            show_converted(report, verbose=verbose)
            click.echo(f"wrote {plain(output)}")
