"""lorakit add."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..version import __version__
from .options import (
    PATH,
    RULES_HELP,
    base_option,
    clear_errors,
    dora_option,
    dtype_option,
    foretell,
    output_option,
    parse_dtype,
    parse_placement,
    placement_options,
    result_options,
    tell,
    where_option,
)

if TYPE_CHECKING:
    from ..lora_ops import AddOptions, Convention


@click.command()
@click.argument("loras", nargs=-1, required=True, metavar="LORA[:S[:BLOCKS]]...")
@output_option
@click.option(
    *("-r", "--rank", "rule"), help=RULES_HELP + "  [default: the exact sum, all ranks together]"
)
@click.option(
    *("-m", "--method"),
    metavar="NAME[,PARAMETER=VALUE]",
    default="sum",
    help="How. From the inputs' inner products, exact: sum; average (over the sum of strengths); slerp,t=0.5 "
    "(two inputs); karcher; geometric_median; model_stock; orthogonalise (the last without its part along the "
    "others); energy (at equal norms). From their factors, not a sum of them: ties,density=0.2, magnitude, "
    "dare, dare_ties, della, breadcrumbs and sce (at a scope); tsv; iso; np,mu=0.5,directions=0 (the first "
    "gives way to the second); knots; ctm,directions=0; lego,directions=0. docs/adding.md says what each is for.",
)
@click.option(
    "--scope",
    type=click.Choice(["core", "units", "element"]),
    help="Where ties and the like work: core, the small matrices between the inputs' common directions; units, "
    "whole ranks (dare alone); element, the weight's own elements, which need a rank and do not fit in a LoRA.  "
    "[default: core]",
)
@click.option(
    "--keep-whole",
    "keep_whole",
    metavar="LORA",
    multiple=True,
    help="One of LORAS that a method from ties on does not see, and that is added to its result as it is. May be "
    "repeated; none for no such.  [default: LCM, Lightning, DMD, Turbo and Hyper LoRAs, by name and metadata]",
)
@where_option
@click.option(
    *("--format", "format_"),
    type=click.Choice(["comfy", "kohya", "peft", "diffusers"]),
    help="Names in the file.  [default: as in the first LoRA]",
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
    help="The model they are for: gives names with underscores their dots back.  [default: none]",
)
@base_option
@dora_option
@dtype_option("the widest of the inputs")
@placement_options
@result_options
def add(
    loras: tuple[str, ...],
    output: Path,
    rule: str | None,
    method: str,
    scope: str | None,
    keep_whole: tuple[str, ...],
    where: tuple[str, ...],
    format_: str | None,
    architecture: str | None,
    reference: Path | None,
    base: Path | None,
    dora: Convention,
    dtype: str | None,
    device: str,
    vram: str | None,
    force: bool,
    dry_run: bool,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Write the sum of LORAS, each times its strength S.

    A strength may have block weights behind it. The sum is exact, unless a rank is asked for: then
    each layer is the best approximation of the sum. Ranks, alphas, dtypes, formats and layers may differ. With --base, what DoRA, OFT and the
    like make of its weights, at their strengths, is added. A sum in PEFT's format becomes a folder of PEFT where the output is no .safetensors.
    `a.safetensors:0.7 b.safetensors:-0.3:OUTALL`
    """
    with clear_errors(), contextlib.ExitStack() as stack:
        from ..lora_ops import ArgumentError, Ingredient, open_source, plan_add_files
        from ..lora_ops.operations.edit import run_edit
        from ..lora_ops.run.inputs import paths_of
        from ..terminal.as_json import check_json
        from ..terminal.edits import show_sum
        from ..terminal.progress import progress_bar
        from .terms import kept_places, parse_method, parse_term

        placement = parse_placement(device, vram)
        name, parameters = parse_method(method)
        if scope is not None and "scope" in parameters:
            raise ArgumentError(
                "the scope is given twice: by --scope, and in --method; leave one out"
            )
        terms = [parse_term(text) for text in loras]
        opened = [stack.enter_context(open_source(term.path)) for term in terms]
        model, weights = (
            stack.enter_context(open_source(path)) if path is not None else None
            for path in (reference, base)
        )
        check_json(json_to, paths_of(*opened, model, weights), output)
        ingredients = [
            Ingredient(source, term.strength, term.blocks)
            for source, term in zip(opened, terms, strict=True)
        ]
        options: AddOptions = {
            "where": where,
            "method": name,
            "options": parameters | ({} if scope is None else {"scope": scope}),
            "dtype": parse_dtype(dtype),
            "format": format_,
            "architecture": architecture,
            "reference": model,
            "base": weights,
            "dora": dora,
            "force": force,
            "keep_whole": kept_places(keep_whole, [term.path for term in terms]),
        }
        started = time.perf_counter()
        plan = plan_add_files(ingredients, output, rule, **options)
        if dry_run:
            foretell(plan.preview(), json_to=json_to)
            return
        with progress_bar("adding", unit="layers") as progress:
            report = run_edit(
                plan,
                started=started,
                placement=placement(),
                version=__version__,
                progress=progress,
            )
        tell(report, show_sum, json_to=json_to, verbose=verbose, output=output)
