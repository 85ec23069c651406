"""lorakit extract."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..version import __version__
from .activations import activations_option
from .control import Ending, extract_control, refuse_beside_control
from .division import division, division_options, may_replace, own_device, tell_all
from .extract_many import extract_each
from .hash_cache import hash_cache_option
from .options import (
    BUDGETS_HELP,
    NOISE_HELP,
    PATH,
    RULES_HELP,
    clear_errors,
    devices_option,
    dry_run_option,
    dtype_option,
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
    from ..lora_ops import Convention, Embeddings, PlanOptions


@click.command()
@click.argument("base", type=PATH)
@click.argument("tuned", type=PATH, nargs=-1, required=True)
@click.option(
    *("-o", "--output"),
    type=PATH,
    required=True,
    help="LoRA file to write (.safetensors); of several TUNED the folder, in which each LoRA has its "
    "TUNED's name.",
)
@click.option(
    *("-r", "--rank", "rule"),
    help=f"{RULES_HELP} {BUDGETS_HELP} {NOISE_HELP}",
)
@click.option(
    "--relative",
    is_flag=True,
    help="Under a budget, compare changes as shares of the weights of BASE.  [default: as they are]",
)
@norm_option
@click.option(
    "--kind",
    metavar="KIND",
    default="lora",
    help="The form of the change: lora; dora (the tuned weight's row lengths over a LoRA); lokr (the nearest "
    "Kronecker product); loha (by alternating least squares: a rank, 4 times the numbers of up and down); "
    "locon-tucker (cores for k x k kernels); control-lora, of a ControlNet (TUNED) and the checkpoint that it "
    "was made from (BASE).",
)
@click.option(
    "--factor",
    type=click.IntRange(-1),
    default=-1,
    help="Of a LoKr: the size that one of its two matrices is to have on either side, as LyCORIS means it; -1: "
    "as even as can be.",
)
@click.option(
    *("--format", "format_"),
    type=click.Choice(["comfy", "kohya", "peft"]),
    default="comfy",
    help="Names in the file: comfy loads in ComfyUI for every architecture; kohya for SD1.5, SD2, SDXL and Flux; "
    "peft is a folder, of one model of transformers or diffusers.",
)
@click.option(
    "--embeddings",
    type=click.Choice(["whole", "lora", "none"]),
    help="Of format peft: embeddings and heads that changed are kept whole (modules_to_save), given factors, or "
    "left out.  [default: whole]",
)
@dtype_option("the tuned file's")
@click.option(
    "--components",
    metavar="LIST",
    help="Which of unet, te, vae, joined by commas.  [default: unet,te as far as both files hold them]",
)
@click.option(
    "--include",
    metavar="PATTERN",
    multiple=True,
    help="Only targets that fit, e.g. '*attn*'. May be repeated.",
)
@click.option(
    "--exclude", metavar="PATTERN", multiple=True, help="No targets that fit. May be repeated."
)
@click.option(
    "--full-differences",
    is_flag=True,
    help="Keep biases, norms and embeddings too, whole (formats comfy and peft).",
)
@click.option(
    "--auto-full",
    is_flag=True,
    help="Keep a layer whole where its factors would be no smaller than its difference (comfy format only).",
)
@activations_option
@click.option(
    "--allow-partial", is_flag=True, help="Go on where fewer than 95 % of the weights match."
)
@click.option(
    "--exact",
    is_flag=True,
    help="The exact truncation, not one within 0.001 of its error: about 4 times slower.",
)
@click.option(
    "--dora",
    type=click.Choice(["paper", "comfy"]),
    help="Of a DoRA: whose reading it is to be best in, and its error told of; docs/kinds.md.  [default: paper]",
)
@devices_option
@vram_option
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Starts the random numbers."
)
@division_options
@force_option
@dry_run_option
@hash_cache_option
@verbose_option
@json_option
def extract(
    base: Path,
    tuned: tuple[Path, ...],
    output: Path,
    rule: str | None,
    relative: bool,
    norm: str | None,
    kind: str,
    factor: int,
    format_: str,
    embeddings: Embeddings | None,
    dtype: str | None,
    components: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    full_differences: bool,
    auto_full: bool,
    activations: Path | None,
    allow_partial: bool,
    exact: bool,
    dora: Convention | None,
    device: str,
    vram: str | None,
    seed: int,
    force: bool,
    dry_run: bool,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Write the LoRA that takes BASE closest to TUNED.

    Or the DoRA, LoKr, LoHa or Control-LoRA (--kind). Both sides may be .safetensors, a sharded *.index.json, a folder of diffusers or transformers, .ckpt, .pt or
    .bin; full checkpoints or single models. The error that is reported is that of the file as
    written.

    With several TUNED, each weight of BASE is read and decoded once for all of them, and each LoRA is
    the same as if it were made alone. One that cannot be made does not stop the others, and the exit
    status is then 1. A part (I/N) makes some of them, and a run that is resumed those that are not there.

    Of the kind control-lora TUNED is a ControlNet of SD1.5, SD2 or SDXL, and what is written a
    Control-LoRA, which ComfyUI loads as the ControlNet that it is; docs/control_loras.md.
    """
    with clear_errors(), ExitStack() as stack:
        from ..lora_ops import (
            ArgumentError,
            extract_file,
            open_source,
            plan_file,
            preview_extraction,
        )
        from ..lora_ops.run.inputs import paths_of
        from ..terminal.as_json import check_json
        from ..terminal.progress import progress_bar
        from ..terminal.tables import show_report

        asked = division(output, force=force)
        placement = parse_placement(own_device(device), vram)
        force = may_replace(asked, output, force=force)
        if kind == "control-lora":
            refuse_beside_control(
                {
                    "a second ControlNet": len(tuned) > 1,
                    "--relative": relative,
                    "--norm": norm is not None,
                    "--embeddings": embeddings is not None,
                    "--dora": dora is not None,
                    "--factor": factor != -1,
                    "--auto-full": auto_full,
                    "--format": format_ != "comfy",
                    "--components": components is not None,
                    "--full-differences": full_differences,
                    "--activations": activations is not None,
                    "--allow-partial": allow_partial,
                }
            )
            extract_control(
                *(base, tuned[0], output, rule),
                dtype=parse_dtype(dtype),
                include=include,
                exclude=exclude,
                exact=exact,
                placement=placement(),
                seed=seed,
                ending=Ending(force, dry_run, verbose, json_to, asked),
            )
            return
        if dora is not None and kind != "dora":
            raise ArgumentError("--dora is for --kind dora; leave it out")
        record = stack.enter_context(open_source(activations)) if activations else None
        options: PlanOptions = {
            "dtype": parse_dtype(dtype),
            "components": _words(components),
            "include": include,
            "exclude": exclude,
            "full_differences": full_differences,
            "allow_partial": allow_partial,
            "relative": relative,
            "norm": norm,
            "kind": kind,
            "factor": factor,
            "convention": dora or "paper",
            "auto_full": auto_full,
            "activations": record,
        }
        first, *more = tuned
        if more:
            with open_source(base) as base_source:
                extract_each(
                    *(base_source, tuned, output, rule),
                    {"exact": exact, "placement": placement(), "seed": seed},
                    options,
                    format=format_,
                    embeddings=embeddings,
                    force=force,
                    dry_run=dry_run,
                    verbose=verbose,
                    json_to=json_to,
                    asked=asked,
                )
            return
        with open_source(base) as base_source, open_source(first) as tuned_source:
            check_json(json_to, paths_of(base_source, tuned_source, record), output)
            plan = plan_file(
                base_source,
                tuned_source,
                rule,
                output=output,
                force=force,
                format=format_,
                embeddings=embeddings,
                **options,
            )
            if dry_run:
                foretell(preview_extraction(plan, output), json_to=json_to)
                return
            with progress_bar("extracting") as progress:
                report = extract_file(
                    plan,
                    base_source,
                    tuned_source,
                    output,
                    format=format_,
                    force=force,
                    exact=exact,
                    placement=placement(),
                    seed=seed,
                    version=__version__,
                    progress=progress,
                    division=asked,
                )
        tell_all(
            *(report, show_report), asked=asked, output=output, json_to=json_to, verbose=verbose
        )


def _words(listed: str | None) -> list[str] | None:
    return None if listed is None else [word.strip() for word in listed.split(",")]
