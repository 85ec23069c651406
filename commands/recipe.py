"""lorakit recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .hash_cache import hash_cache_option
from .options import PATH, clear_errors, force_option, json_option, tell

if TYPE_CHECKING:
    from ..lora_ops import Convention

#: What a merge may be written to, with its recipe in it.
MERGED = (".safetensors", ".sft", ".gguf", ".safetensors.index.json")


@click.command()
@click.argument("file", type=PATH)
@click.option(
    "--search",
    type=PATH,
    metavar="FOLDER",
    multiple=True,
    help="Look for its files there, by name and hash, and say where they are. May be repeated.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Merge again without writing, from the files that are found, and compare FILE with that: it "
    "is an error if a number differs.",
)
@click.option(
    "--dora",
    type=click.Choice(["paper", "comfy"]),
    help="When verifying: how the LoRAs in it were read when it was merged; docs/kinds.md.  "
    "[default: as is recorded]",
)
@click.option("--ancestry", is_flag=True, help="Show the tree of its inputs, not the recipe.")
@click.option(
    "--row",
    type=click.IntRange(1),
    help="Which merge of supermerger's mergehistory.csv, from 1.  [default: the last]",
)
@click.option(
    "-o", "--output", type=PATH, help="Write the recipe there (.toml).  [default: stdout]"
)
@force_option
@hash_cache_option
@json_option
def recipe(
    file: Path,
    search: tuple[Path, ...],
    verify: bool,
    dora: Convention | None,
    ancestry: bool,
    row: int | None,
    output: Path | None,
    force: bool,
    json_to: str | None,
) -> None:
    """Say how FILE was merged, as a recipe that can be run again.

    FILE is a merged model, a folder of diffusers too (by lorakit, A1111, supermerger, model-mixer,
    Chattiori, sd-mecha, or a graph of ComfyUI), or a recipe: lorakit's own, a graph of ComfyUI (.json),
    mergekit's .yaml, .mecha, a merge plan, or supermerger's mergehistory.csv. The recipe goes to stdout,
    as TOML; what could not be carried, and where files were found, to stderr.
    """
    with clear_errors():
        _check(
            verify,
            {"--ancestry": ancestry, "--row": row, "--output": output},
            {"--dora": dora, "--json": json_to},
        )
    if verify:
        _verify(file, search, dora, json_to)
        return
    with clear_errors():
        from ..lora_ops import ArgumentError
        from ..lora_ops.files import check_output, write_whole
        from ..lora_ops.operations.merge.recipes.document import as_toml
        from ..lora_ops.operations.merge.recipes.find import find_files
        from ..lora_ops.operations.merge.recipes.opening import open_recipe

        if ancestry and output is not None:
            raise ArgumentError("--output is for the recipe, and --ancestry shows the tree instead")
        if row is not None and not file.name.lower().endswith(".csv"):
            raise ArgumentError("--row is for a history of merges (.csv)", path=file)
        if output is not None:
            check_output(output, [file], force=force, suffix=".toml")
        found = open_recipe(file, row)
        if found.recipe is None:
            raise click.ClickException(f"{file}: no recipe is recorded in it")
        for sentence in found.lost:
            click.echo(f"not carried: {sentence}", err=True)
        if search:
            files = find_files(found.recipe, search)
            for key, path in files.paths.items():
                click.echo(f"{key} is {path}", err=True)
            for note in files.notes:
                click.echo(f"note: {note}", err=True)
        if ancestry:
            click.echo("\n".join(found.lines()))
        elif output is None:
            click.echo(as_toml(found.recipe), nl=False)
        else:
            write_whole(output, as_toml(found.recipe).encode(), replace=force)


def _check(verify: bool, shown: Mapping[str, object], verified: Mapping[str, object]) -> None:
    """Refuse options that would be for nothing: of showing when verifying, and the other way round."""
    from ..lora_ops import ArgumentError

    idle = [name for name, given in (shown if verify else verified).items() if given]
    if idle:
        raise ArgumentError(f"{idle[0]} is of no use {'with' if verify else 'without'} --verify")


def _verify(
    file: Path, search: tuple[Path, ...], dora: Convention | None, json_to: str | None
) -> None:
    """Say whether a merged model is what its recipe gives; exit status 1 if not."""
    with clear_errors(), contextlib.ExitStack() as stack:
        from ..lora_ops import ArgumentError, open_recipe, open_source, verify_merge
        from ..lora_ops.run.inputs import paths_of
        from ..terminal.as_json import check_json
        from ..terminal.merged import show_check
        from ..terminal.progress import progress_bar
        from .merge_request import Asked, Request

        if not (file.is_dir() or file.name.lower().endswith(MERGED)):
            raise ArgumentError("a merged model is verified, by the recipe in it", path=file)
        open_recipe(file)
        merged = stack.enter_context(open_source(file))
        request = Request(lambda path: stack.enter_context(open_source(path)), is_checked=True)
        recipe = request.read([str(file)], Asked(), search)
        check_json(json_to, paths_of(merged, *request.sources.values()))
        with progress_bar("verifying") as progress:
            found = verify_merge(
                *(recipe, request.sources, merged),
                allow_nonfinite=True,
                allow_partial=True,
                dora=dora,
                progress=progress,
            )
        tell(found, show_check, json_to=json_to, verbose=False)
        if not found.is_same:
            raise click.ClickException(f"{file} is not what its recipe gives")
