"""lorakit bake and lorakit unbake: one the reverse of the other."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..version import __version__
from .bake_method import Storing, bake_by_method
from .control import Ending, bake_control, refuse_beside_control
from .division import division, division_options, may_replace, processes_option, tell_all
from .options import (
    PATH,
    clear_errors,
    dora_option,
    dtype_option,
    foretell,
    parse_dtype,
    parse_rounding,
    result_options,
    rounding_options,
    storing_options,
    together,
    where_option,
)

if TYPE_CHECKING:
    from ..lora_ops import Convention


#: Arguments and options that bake and unbake share.
_arguments = together(
    click.argument("checkpoint", type=PATH),
    click.argument("loras", nargs=-1, required=True, metavar="LORA[:S[:BLOCKS]]..."),
    click.option(
        *("-o", "--output"),
        type=PATH,
        required=True,
        help="Checkpoint to write: .safetensors, .safetensors.index.json for shards, or .gguf; a new folder where "
        "CHECKPOINT is a folder of diffusers.",
    ),
    where_option,
    dora_option,
    dtype_option("as the checkpoint stores them, with scales too", "weights"),
    storing_options,
    rounding_options(""),
    click.option(
        "--allow-partial",
        is_flag=True,
        help="Leave out layers that the checkpoint has no weight for.",
    ),
    processes_option,
    division_options,
    result_options,
)


@click.command()
@click.option(
    *("-m", "--method"),
    metavar="NAME[,PARAMETER=VALUE]",
    help="How several LORAS go together, on the elements of each weight, where all of the result has room: "
    "ties,density=0.2, magnitude, dare, dare_ties, della, breadcrumbs, sce and others of docs/merging.md; the seed is "
    "of their masks, too. What a LoRA can hold is a method of add.  [default: sum]",
)
@click.option(
    "--keep-whole",
    "keep_whole",
    metavar="LORA",
    multiple=True,
    help="One of LORAS that a method on elements does not see, and that is added to its result as it is. May be "
    "repeated; none for no such.  [default: LCM, Lightning, DMD, Turbo and Hyper LoRAs, by name and metadata]",
)
@_arguments
def bake(**arguments: object) -> None:
    """Write CHECKPOINT with LORAS in it, each times its strength S.

    Sums are taken in float32 and rounded once; all other tensors are kept byte for byte. Weights that
    CHECKPOINT stores with scales are stored so again, where that can be written; another number
    format is for all. The report says how much of each change survived the rounding. Kinds may be mixed, in any order:
    what DoRA, OFT and the like change is made from the weights of CHECKPOINT.

    Of a Control-LoRA alone the result is its ControlNet, whole, under native names.
    """
    _bake(1, **arguments)  # pyright: ignore[reportArgumentType]


@click.command()
@_arguments
@click.option(
    "--allow-other",
    is_flag=True,
    help="Take out also what is not in CHECKPOINT by its record, or not at that strength.",
)
def unbake(**arguments: object) -> None:
    """Write CHECKPOINT with LORAS taken out of it again.

    What rounding took when they were baked in does not come back. If CHECKPOINT records what was
    baked into it, another LoRA or another strength is an error.
    """
    _bake(-1, **arguments)  # pyright: ignore[reportArgumentType]


def _bake(
    sign: int,
    *,
    checkpoint: Path,
    loras: tuple[str, ...],
    output: Path,
    where: tuple[str, ...],
    dtype: str | None,
    to: str | None,
    whole: tuple[str, ...],
    quantise: tuple[str, ...],
    rounding: str | None,
    seed: int | None,
    dora: Convention,
    allow_partial: bool,
    force: bool,
    dry_run: bool,
    verbose: bool,
    json_to: str | None,
    allow_other: bool = False,
    method: str | None = None,
    keep_whole: tuple[str, ...] = (),
) -> None:
    with clear_errors(), contextlib.ExitStack() as stack:
        from ..lora_ops import (
            ArgumentError,
            Ingredient,
            bake_file,
            is_control_lora,
            open_source,
            plan_bake_file,
            preview_bake,
        )
        from ..terminal.as_json import check_json
        from ..terminal.edits import show_baked
        from ..terminal.progress import progress_bar
        from .terms import kept_places, parse_term

        asked = division(output, force=force)
        force = may_replace(asked, output, force=force)
        terms = [parse_term(text) for text in loras]
        model = stack.enter_context(open_source(checkpoint))
        opened = [stack.enter_context(open_source(term.path)) for term in terms]
        if sign > 0 and any(map(is_control_lora, opened)):
            refuse_beside_control(
                {
                    "a second LoRA": len(terms) > 1,
                    "a strength": any(
                        (term.strength, term.blocks) != (1.0, None) for term in terms
                    ),
                    "--where": bool(where),
                    "--to": to is not None,
                    "--whole": bool(whole),
                    "--quantise": bool(quantise),
                    "--rounding": rounding is not None,
                    "--seed": seed is not None,
                    "--allow-partial": allow_partial,
                    "--method": method is not None,
                    "--keep-whole": bool(keep_whole),
                }
            )
            ending = Ending(force, dry_run, verbose, json_to, asked)
            bake_control(model, opened[0], output, parse_dtype(dtype), ending)
            return
        check_json(json_to, [path for source in (model, *opened) for path in source.paths], output)
        ingredients = [
            Ingredient(source, term.strength, term.blocks, where)
            for source, term in zip(opened, terms, strict=True)
        ]
        places = kept_places(keep_whole, [term.path for term in terms])
        if method not in (None, "sum"):
            bake_by_method(
                *(model, ingredients, output, method, places, seed),
                Storing(dtype, to, whole, quantise, rounding),
                Ending(force, dry_run, verbose, json_to, asked),
                allow_partial=allow_partial,
                dora=dora,
            )
            return
        if places:
            raise ArgumentError("a sum keeps every LoRA whole: leave out --keep-whole")
        plan = plan_bake_file(
            model,
            ingredients,
            output=output,
            force=force,
            dtype=parse_dtype(dtype),
            to=to,
            whole=whole,
            quantise=quantise,
            **parse_rounding(rounding, seed),
            allow_partial=allow_partial,
            sign=sign,
            allow_other=allow_other,
            dora=dora,
        )
        if dry_run:
            foretell(preview_bake(plan, output), json_to=json_to)
            return
        with progress_bar("baking" if sign > 0 else "unbaking") as progress:
            report = bake_file(
                *(plan, model, output),
                force=force,
                version=__version__,
                progress=progress,
                division=asked,
            )
        tell_all(
            *(report, show_baked), asked=asked, output=output, json_to=json_to, verbose=verbose
        )
