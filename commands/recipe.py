"""lorakit recipe."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, clear_errors, force_option


@click.command()
@click.argument("file", type=PATH)
@click.option(
    "--search",
    type=PATH,
    metavar="FOLDER",
    multiple=True,
    help="Look for its files there, by name and hash, and say where they are. May be repeated.",
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
def recipe(
    file: Path,
    search: tuple[Path, ...],
    ancestry: bool,
    row: int | None,
    output: Path | None,
    force: bool,
) -> None:
    """Say how FILE was merged, as a recipe that can be run again.

    FILE is a merged model (by lorakit, A1111, supermerger, model-mixer, Chattiori, sd-mecha, or a
    graph of ComfyUI), or a recipe: lorakit's own, a graph of ComfyUI (.json), mergekit's .yaml,
    .mecha, a merge plan, or supermerger's mergehistory.csv. The recipe goes to stdout, as TOML; what
    could not be carried, and where files were found, to stderr.
    """
    with clear_errors():
        from ..lora_ops.files import check_output, write_whole
        from ..lora_ops.operations.merge.recipes.document import as_toml
        from ..lora_ops.operations.merge.recipes.find import find_files
        from ..lora_ops.operations.merge.recipes.opening import open_recipe

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
