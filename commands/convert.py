"""lorakit convert."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..version import __version__
from .hash_cache import hash_cache_option
from .options import (
    BUDGETS_HELP,
    PATH,
    RULES_HELP,
    base_option,
    clear_errors,
    device_option,
    dora_option,
    dry_run_option,
    dtype_option,
    exact_option,
    force_option,
    foretell,
    json_option,
    parse_dtype,
    parse_placement,
    verbose_option,
    vram_option,
)

if TYPE_CHECKING:
    from ..lora_ops import Convention, ConvertOptions


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
    type=click.Choice(["kohya", "comfy", "diffusers", "peft", "control-lora"]),
    help="Names in the file: as kohya's scripts, ComfyUI, diffusers or PEFT write them; control-lora of a Control-LoRA alone.  "
    "[default: those it has, if a kind is asked for]",
)
@click.option(
    "--to",
    type=click.Choice(["lora"]),
    help="Kind of every layer: plain LoRA, up and down alone.  [default: the kind it is]",
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
    help="For every layer if all become LoRA, else for those that are joined from several. "
    + RULES_HELP
    + " "
    + BUDGETS_HELP
    + "  [default: all, exactly]",
)
@click.option(
    "--allow-partial",
    is_flag=True,
    help="Leave out full differences, and other layers, that the format has no place for.",
)
@base_option
@dora_option
@exact_option
@dtype_option("each layer's own")
@device_option
@vram_option
@force_option
@dry_run_option
@hash_cache_option
@verbose_option
@json_option
def convert(
    lora: Path,
    output: Path,
    format_: str | None,
    to: str | None,
    architecture: str | None,
    reference: Path | None,
    rule: str | None,
    allow_partial: bool,
    base: Path | None,
    dora: Convention,
    exact: bool,
    dtype: str | None,
    device: str,
    vram: str | None,
    force: bool,
    dry_run: bool,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Write LORA with other names, or as plain LoRA.

    Projections that one program splits and the other fuses are cut or joined, exactly; the
    changes stay the same. LoHa, LoKr and every other kind become plain LoRA if that is asked for:
    exactly where the rank is small, else at the rank that is given, with its error.
    """
    with clear_errors(), contextlib.ExitStack() as stack:
        from ..lora_ops import open_source, plan_convert_file
        from ..lora_ops.operations.edit import run_edit
        from ..lora_ops.run.inputs import paths_of
        from ..lora_ops.text import plain
        from ..terminal.as_json import check_json, write_json
        from ..terminal.edits import show_converted, show_edit
        from ..terminal.progress import progress_bar

        placement = parse_placement(device, vram)
        source = stack.enter_context(open_source(lora))
        model, weights = (
            stack.enter_context(open_source(path)) if path is not None else None
            for path in (reference, base)
        )
        check_json(json_to, paths_of(source, model, weights), output)
        options: ConvertOptions = {
            "to": to,
            "architecture": architecture,
            "reference": model,
            "base": weights,
            "rule": rule,
            "dtype": parse_dtype(dtype),
            "dora": dora,
            "exact": exact,
            "allow_partial": allow_partial,
            "force": force,
        }
        started = time.perf_counter()
        plan = plan_convert_file(source, output, format_, **options)
        if dry_run:
            foretell(plan.preview(), json_to=json_to)
            return
        with progress_bar("converting", unit="layers") as progress:
            report = run_edit(
                plan,
                started=started,
                placement=placement(),
                version=__version__,
                progress=progress,
            )
        if not write_json(report.to_dict(), json_to):
            show = show_converted if to is None else show_edit
            show(report, verbose=verbose)
            click.echo(f"wrote {plain(output)}")
