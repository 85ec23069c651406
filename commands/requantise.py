"""lorakit requantise."""

from __future__ import annotations

from pathlib import Path

import click

from ..version import __version__
from .division import division, division_options, may_replace, processes_option, tell_all
from .options import (
    PATH,
    clear_errors,
    dtype_option,
    foretell,
    lowered,
    parse_dtype,
    parse_rounding,
    patterns_options,
    result_options,
    rounding_options,
)


@click.command()
@click.argument("model", type=PATH)
@click.option(
    *("-o", "--output"),
    type=PATH,
    required=True,
    help="Checkpoint to write: .safetensors, .safetensors.index.json for shards, or .gguf.",
)
@click.option(
    "--to",
    callback=lowered,
    metavar="STORAGE",
    required=True,
    help="How: fp8_scaled, fp8_e5m2_scaled, int8, mxfp8, nvfp4, nf4, fp4, fp8_legacy or fp8; for GGUF q8_0, q5_1, q5_0, q4_1, q4_0, bf16, "
    "f16 or f32. docs/quantised.md has what they are.",
)
@patterns_options("--keep")
@rounding_options("")
@dtype_option("as MODEL stores them; matrices with scales: bf16", "weights that are not written so")
@processes_option
@division_options
@result_options
def requantise(
    model: Path,
    output: Path,
    to: str,
    whole: tuple[str, ...],
    quantise: tuple[str, ...],
    rounding: str | None,
    seed: int | None,
    dtype: str | None,
    force: bool,
    dry_run: bool,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Write MODEL with its matrices in 8 bits or 4, and scales.

    MODEL may be stored in any way that is read. Each matrix of its diffusion model is rounded once; one that is stored
    so already is copied, and so is everything that stays whole. The report says by how much storing has changed each.
    A GGUF file holds the diffusion model alone; what else MODEL has is left out, and reported.
    """
    with clear_errors():
        from ..lora_ops import (
            open_source,
            plan_requantise_file,
            preview_requantise,
            requantise_file,
        )
        from ..terminal.as_json import check_json
        from ..terminal.edits import show_requantised
        from ..terminal.progress import progress_bar

        asked = division(output, force=force)
        force = may_replace(asked, output, force=force)
        with open_source(model) as source:
            check_json(json_to, source.paths, output)
            plan = plan_requantise_file(
                *(source, to),
                output=output,
                force=force,
                dtype=parse_dtype(dtype),
                whole=whole,
                quantise=quantise,
                **parse_rounding(rounding, seed),
            )
            if dry_run:
                foretell(preview_requantise(plan, output), json_to=json_to)
                return
            with progress_bar("writing") as progress:
                report = requantise_file(
                    *(plan, output),
                    force=force,
                    version=__version__,
                    progress=progress,
                    division=asked,
                )
        tell_all(
            *(report, show_requantised),
            asked=asked,
            output=output,
            json_to=json_to,
            verbose=verbose,
        )
