"""Read Recipe: how a file was merged, as a recipe that can be run again, and what went into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..form.schema import report_output, reported, schema
from ..form.texts import WARNS, headed
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.model_files import input_names, input_path
from .merging import FOLDERS

if TYPE_CHECKING:
    from ...lora_ops import Ancestor

# Of files with a recipe alone, which lie in the input folder.
_RECIPES = (".toml", ".json", ".yaml", ".yml", ".mecha", ".csv", ".txt")


class ReadRecipe(io.ComfyNode):
    """Shows the recipe in a merged model, or in a file of any known program."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "ReadRecipe",
            "Read Recipe",
            description="How a model was merged, whichever program did it: its recipe as text that "
            "Merge Recipe takes, the models that went into it and into those, and what of the recipe "
            "could not be carried.",
            search_aliases=[
                "merge recipe",
                "sd_merge_recipe",
                "checkpoint info",
                "model ancestry",
                "metadata",
            ],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[*host.file_names(*FOLDERS), *input_names(*_RECIPES)],
                    tooltip="A merged model of models/checkpoints or models/diffusion_models; or a "
                    "recipe in the input folder: TOML or JSON of lorakit, a graph of ComfyUI, "
                    "mergekit's YAML, .mecha, a merge plan, supermerger's history.",
                ),
                io.Int.Input(
                    "row",
                    default=0,
                    min=0,
                    max=1_000_000,
                    optional=True,
                    tooltip="Of a history of merges, the number of the merge. 0: the last.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="recipe", tooltip="The recipe in TOML, for Merge Recipe."
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **rest: object) -> str:
        """A value that changes with the file, so that the host runs the node again."""
        del rest
        if file is None or not file.lower().endswith(_RECIPES):
            return host.fingerprint(file, *FOLDERS)
        status = input_path(file).stat()
        return f"{status.st_mtime_ns}:{status.st_size}"

    @classmethod
    @explained
    def execute(cls, file: str, row: int = 0) -> io.NodeOutput:
        """Read it.

        Raises:
            FileNotFoundError: There is no such file.
            LoraOpsError: There is no recipe in it, or a damaged one.
        """
        from ...lora_ops import as_toml, open_recipe

        found = open_recipe(_path(file), row or None)
        text = as_toml(found.recipe) if found.recipe else ""
        return reported(_told(found), text)


def _path(file: str) -> Path:
    if file.lower().endswith(_RECIPES):
        return input_path(file)
    return host.file_path(file, *FOLDERS)


def _told(found: Ancestor) -> str:
    """Who made it, what went into it, and what could not be carried."""
    from ...lora_ops.report import counted
    from ...lora_ops.text import plain

    recipe = found.recipe
    files, steps = (len(recipe.files), len(recipe.steps)) if recipe else (0, 0)
    headline = (
        f"{plain(found.file.name)}: a recipe of {plain(found.program)}, "
        f"{counted(steps, 'step')}, {counted(files, 'file')}"
    )
    return headed(headline, *_lost(found), *map(plain, found.lines()))


def _lost(found: Ancestor) -> Iterator[str]:
    from ...lora_ops.text import plain

    for one in found.lost:
        yield f"{WARNS}{plain(found.file.name)}: not carried: {plain(one)}"
    for parent in found.parents:
        yield from _lost(parent)
