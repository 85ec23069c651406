"""lorakit resize."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..version import __version__
from .activations import activations_option
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
    norm_option,
    parse_dtype,
    parse_placement,
    verbose_option,
    vram_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..lora_ops import Convention, FileSource, LoraOpsError, Preview, Report, ResizeOptions


@click.command()
@click.argument("lora", type=PATH)
@click.option(
    *("-o", "--output"),
    type=PATH,
    required=True,
    help="LoRA file to write (.safetensors); a folder if LORA is one.",
)
@click.option(
    *("-r", "--rank", "rule"),
    required=True,
    help=f"{RULES_HELP} {BUDGETS_HELP}",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, min_open=True),
    help="Number to store; the strength stays.  [default: the rank]",
)
@dtype_option("each layer's own")
@click.option(
    "--relative-to",
    type=PATH,
    metavar="CHECKPOINT",
    help="Under a budget, compare changes as shares of the weights that they change.  "
    "[default: as they are]",
)
@norm_option
@activations_option
@base_option
@dora_option
@exact_option
@device_option
@vram_option
@force_option
@dry_run_option
@hash_cache_option
@verbose_option
@json_option
def resize(
    lora: Path,
    output: Path,
    rule: str,
    alpha: float | None,
    dtype: str | None,
    relative_to: Path | None,
    norm: str | None,
    activations: Path | None,
    base: Path | None,
    dora: Convention,
    exact: bool,
    device: str,
    vram: str | None,
    force: bool,
    dry_run: bool,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Write LORA at other ranks, its strength unchanged.

    Every layer becomes the best approximation of its rank. With --base, DoRA stays DoRA; OFT, IA3
    and the like become LoRA. LORA may be a folder: PEFT's, which is one adapter and stays one; or
    any, whose every .safetensors is resized into the output folder, one line each. A file that
    cannot be does not stop the others, and the exit status is then 1.
    """
    with clear_errors():
        from ..lora_ops import open_source, plan_resize_file
        from ..lora_ops.files import is_peft_folder
        from ..lora_ops.operations.edit import run_edit
        from ..lora_ops.operations.folder import edit_folder, preview_folder
        from ..lora_ops.run.inputs import paths_of
        from ..lora_ops.text import plain
        from ..terminal.as_json import check_json, write_json
        from ..terminal.edits import show_edit
        from ..terminal.progress import progress_bar

        placement = parse_placement(device, vram)
        with contextlib.ExitStack() as stack:
            measure, weights, record = (
                stack.enter_context(open_source(path)) if path is not None else None
                for path in (relative_to, base, activations)
            )
            check_json(json_to, [lora, *paths_of(measure, weights, record)], output)

            options: ResizeOptions = {
                "alpha": alpha,
                "dtype": parse_dtype(dtype),
                "relative_to": measure,
                "norm": norm,
                "base": weights,
                "dora": dora,
                "exact": exact,
                "activations": record,
                "force": force,
            }

            def preview(source: FileSource, to: Path) -> Preview:
                return plan_resize_file(source, to, rule, **options).preview()

            def edit(source: FileSource, to: Path) -> Report:
                started = time.perf_counter()
                plan = plan_resize_file(source, to, rule, **options)
                with progress_bar("resizing", unit="layers") as progress:
                    return run_edit(
                        plan,
                        started=started,
                        placement=placement(),
                        version=__version__,
                        progress=progress,
                    )

            if lora.is_dir() and not is_peft_folder(lora):
                found = (
                    preview_folder(lora, output, preview)
                    if dry_run
                    else edit_folder(lora, output, edit)
                )
                _tell_folder(found, json_to)
                return
            source = stack.enter_context(open_source(lora))
            if dry_run:
                foretell(preview(source, output), json_to=json_to)
                return
            report = edit(source, output)
        if not write_json(report.to_dict(), json_to):
            show_edit(report, verbose=verbose)
            click.echo(f"wrote {plain(output)}")


def _tell_folder(
    results: Iterable[tuple[Path, Report | Preview | LoraOpsError]], json_to: str | None
) -> None:
    """A line for each file, and status 1 if one could not be resized."""
    from ..lora_ops import LoraOpsError
    from ..terminal.as_json import STDOUT, write_json
    from ..terminal.edits import file_line

    found: dict[str, object] = {}
    failed = 0
    for name, result in results:
        failed += isinstance(result, LoraOpsError)
        if json_to != STDOUT:
            click.echo(file_line(name, result), err=isinstance(result, LoraOpsError))
        found[name.as_posix()] = (
            {"error": str(result)} if isinstance(result, LoraOpsError) else result.to_dict()
        )
    write_json({"files": found}, json_to)
    if failed:
        raise click.ClickException(f"{failed} of {len(found)} files could not be resized")
