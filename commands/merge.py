"""lorakit merge."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..version import __version__
from .division import division, division_options, may_replace, processes_option, tell_all
from .options import (
    PATH,
    blocks_option,
    clear_errors,
    foretell,
    result_options,
    rounding_options,
    storing_options,
)

if TYPE_CHECKING:
    from ..lora_ops import Convention, MergeOptions

_EXAMPLES = """\b
lorakit merge a.safetensors:0.7 b.safetensors:0.3 -o m.safetensors
lorakit merge "A + 0.35*(B - C)" A=a.safetensors B=b.safetensors C=c.safetensors -o m.safetensors
lorakit merge --base c.safetensors a.safetensors b.safetensors:0.6 -m dare_ties -o m.safetensors
lorakit merge a.safetensors --component vae=v.safetensors -o m.safetensors
lorakit merge recipe.toml --set a=0.3 --search models -o m.safetensors
"""


@click.command(epilog=_EXAMPLES)
@click.argument("what", nargs=-1, required=True, metavar="MODEL[:S[:BLOCKS]]...")
@click.option(
    *("-o", "--output"),
    type=PATH,
    required=True,
    help="Checkpoint to write: .safetensors, .safetensors.index.json for shards, or .gguf; a new folder where "
    "the base is a folder of diffusers.",
)
@click.option(
    *("-m", "--method"),
    metavar="NAME[,PARAMETER=VALUE]",
    help="How: sum, average, lerp, add_difference, slerp,t=0.5, ties,density=0.2, dare, della, "
    "model_stock, ...; docs/merging.md has all.  [default: average; sum with a base]",
)
@click.option(
    "--base",
    type=PATH,
    metavar="MODEL",
    help="Add the others' changes of it, not the others.  [default: none]",
)
@blocks_option
@click.option(
    "--where",
    metavar="PATTERN=S",
    multiple=True,
    help="Factor on the weights that fit: te=0, '*attn2*=0.5'. May be repeated; the last that fits "
    "decides.",
)
@click.option(
    "--component",
    metavar="PART[=MODEL]",
    multiple=True,
    help="Merge only unet, te or vae; or, with =MODEL, take a part (also te1, te2, te3) from there as "
    "it is. May be repeated.  [default: merge unet and te, keep the base's vae]",
)
@click.option(
    "--dtype",
    metavar="[PART=]D",
    multiple=True,
    help="Number format: fp16, bf16 or fp32, of all or of a part: vae=fp32. May be repeated.  "
    "[default: as the base stores them, with scales too]",
)
@storing_options
@rounding_options("random masks, and of ")
@click.option(
    "--set",
    "values",
    metavar="NAME=NUMBER",
    multiple=True,
    help="A number for a name ($a) in the line or recipe. May be repeated.",
)
@click.option(
    "--search",
    type=PATH,
    metavar="FOLDER",
    multiple=True,
    help="Look for a recipe's files there, by name and hash. May be repeated.  [default: the recipe's "
    "folder]",
)
@click.option(
    *("-r", "--rank"),
    help="Write not the model but its change of the base, as a LoRA of this rank: a number, a rule or "
    "a budget, as in extract.  [default: a model]",
)
@click.option(
    "--full-differences",
    is_flag=True,
    help="With --rank: keep biases, norms and embeddings whole, too.",
)
@click.option("--strict", is_flag=True, help="Refuse models that do not have the same weights.")
@click.option(
    "--allow-partial",
    is_flag=True,
    help="Leave out layers of LoRAs that the base has no weight for.",
)
@click.option(
    "--allow-nonfinite", is_flag=True, help="Keep the base's weight where another's is not finite."
)
@click.option(
    "--keep",
    type=click.Choice(["auto", "on", "off"]),
    help="Flags of v-prediction: as the base has them, set, or left out.  [default: auto]",
)
@click.option(
    "--dora",
    type=click.Choice(["paper", "comfy"]),
    help="Whose reading of the kinds on which programs differ, DoRA above all; docs/kinds.md.  "
    "[default: paper, or the recipe's]",
)
@click.option("--shard-size", metavar="SIZE", help="Most bytes of a shard, as 8GB.  [default: 5GB]")
@processes_option
@division_options
@result_options
def merge(
    what: tuple[str, ...],
    output: Path,
    method: str | None,
    base: Path | None,
    blocks: str | None,
    where: tuple[str, ...],
    component: tuple[str, ...],
    dtype: tuple[str, ...],
    to: str | None,
    whole: tuple[str, ...],
    quantise: tuple[str, ...],
    rounding: str | None,
    seed: int | None,
    values: tuple[str, ...],
    search: tuple[Path, ...],
    rank: str | None,
    full_differences: bool,
    strict: bool,
    allow_partial: bool,
    allow_nonfinite: bool,
    keep: str | None,
    dora: Convention | None,
    shard_size: str | None,
    force: bool,
    dry_run: bool,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Merge models, and LoRAs into them.

    Streamed from file to file, computed in float32 and rounded once. Models with shares are averaged;
    with --base, their changes of it are added. Or give a line and its files; or a recipe (.toml, .json,
    another program's, or a merged model), which has all of it.
    """
    with clear_errors(), contextlib.ExitStack() as stack:
        from ..lora_ops import (
            extract_file,
            merge_file,
            open_source,
            plan_merge_file,
            preview_extraction,
            preview_merge,
        )
        from ..lora_ops.run.inputs import paths_of
        from ..terminal.as_json import check_json
        from ..terminal.merged import show_merged
        from ..terminal.progress import progress_bar
        from ..terminal.tables import show_report
        from .merge_options import as_lora, check_used, format_notes, shard_bytes, with_options
        from .merge_request import Asked, Request

        asked_for = division(output, force=force)
        force = may_replace(asked_for, output, force=force)
        request = Request(lambda path: stack.enter_context(open_source(path)))
        asked = Asked(
            *(str(base or ""), method or "", blocks or "", where, seed),
            parts=any("=" in one for one in component),
        )
        recipe = request.read(what, asked, search)
        recipe, components = with_options(
            recipe, request, component, dtype, values, rounding=rounding or "", keep=keep or ""
        )
        check_json(json_to, paths_of(*request.sources.values()), output)
        options: MergeOptions = {
            "components": components,
            "strict": strict,
            "allow_nonfinite": allow_nonfinite,
            "allow_partial": allow_partial,
            "dora": dora,
        }
        size = shard_bytes(shard_size or recipe.output.format)
        is_lora = rank is not None or recipe.output.kind == "lora"
        check_used(
            *(is_lora, output),
            parts=component,
            dtype=dtype,
            rounding=rounding,
            keep=keep,
            shard_size=shard_size,
            to=to,
            whole=whole,
            quantise=quantise,
            full_differences=full_differences,
        )
        if is_lora:
            plan, base_source, merged = as_lora(
                recipe, request, rank, output, force, options, full_differences
            )
            if dry_run:
                foretell(preview_extraction(plan, output), json_to=json_to)
                return
            with progress_bar("merging") as progress:
                report = extract_file(
                    *(plan, base_source, merged, output),
                    force=force,
                    version=__version__,
                    progress=progress,
                    division=asked_for,
                )
            tell_all(
                report,
                show_report,
                asked=asked_for,
                output=output,
                json_to=json_to,
                verbose=verbose,
            )
            return
        plan = plan_merge_file(
            recipe,
            request.sources,
            output=output,
            force=force,
            shard_size=size,
            to=to,
            whole=whole,
            quantise=quantise,
            **options,
        )
        plan = replace(plan, notes=(*request.notes, *format_notes(recipe, output), *plan.notes))
        if dry_run:
            foretell(preview_merge(plan, output, shard_size=size), json_to=json_to)
            return
        with progress_bar("merging") as progress:
            report = merge_file(
                *(plan, output),
                force=force,
                version=__version__,
                shard_size=size,
                progress=progress,
                division=asked_for,
            )
        tell_all(
            report,
            show_merged,
            asked=asked_for,
            output=output,
            json_to=json_to,
            verbose=verbose,
        )
