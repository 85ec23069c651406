"""From the text of a recipe to what can be run: numbers for its names, and its files found by the host's lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from ..host import host
from ..host.api import io
from ..host.model_files import model_folders
from .merging import nonfinite_input

if TYPE_CHECKING:
    from ...lora_ops import Recipe

FOLDERS = (host.CHECKPOINTS, host.DIFFUSION_MODELS, host.LORAS)


@dataclass(frozen=True, slots=True)
class Ready:
    """A recipe that can be run.

    Attributes:
        recipe: With numbers for all names.
        paths: Where its files are, by its names.
        notes: What is worth a sentence: what could not be carried, how files were found.
    """

    recipe: Recipe
    paths: dict[str, Path]
    notes: tuple[str, ...]


def recipe_inputs() -> list[io.Input]:
    """The recipe."""
    return [
        io.String.Input(
            "recipe",
            default="",
            multiline=True,
            placeholder='"modelA.safetensors" + 0.3*("modelB.safetensors" - "modelC.safetensors")',
            tooltip="What is merged: a line of names, numbers and + - * ( ), or a whole recipe, in TOML "
            "or of another program, as Read Recipe gives it. Names are those of files in "
            "models/checkpoints, models/diffusion_models and models/loras.",
        )
    ]


def finding_inputs() -> list[io.Input]:
    """Numbers for the names in a recipe, and how its files are looked for."""
    return [
        io.String.Input(
            "values",
            default="",
            optional=True,
            placeholder="a=0.3, b=0.5",
            tooltip="Numbers for the names with $ in the recipe, such as $a, with commas between them.",
        ),
        io.Boolean.Input(
            "by_hash",
            default=False,
            optional=True,
            tooltip="Where no file has the name, look for its hash among all models: files may be "
            "called otherwise here. Each is read once, and its hash remembered.",
        ),
        io.Boolean.Input(
            "allow_partial",
            default=False,
            optional=True,
            tooltip="Go on where a model lacks weights that a LoRA of the recipe changes. Off: that "
            "is an error.",
        ),
        nonfinite_input(),
    ]


def ready(text: str, values: str, by_hash: bool) -> Ready:
    """Read a recipe and find what it needs.

    Args:
        text: A line, a document, or what another program writes.
        values: `a=0.3, b=0.5`.
        by_hash: Whether files may have another name.

    Raises:
        ArgumentError: The recipe means nothing or gives a LoRA; a value is missing, or a file is.
        FormatError: Nobody is known to write such a recipe.
    """
    from ...lora_ops import ArgumentError
    from ...lora_ops.operations.merge.recipes.pasted import parse_pasted

    found = parse_pasted(text, deltas=_lora_names())
    recipe = found.recipe.bind(_numbers(values))
    if recipe.output.kind == "lora":
        raise ArgumentError(
            'the recipe gives a LoRA, and this node a model; take `kind = "lora"` and `rank` out of it, '
            "and extract the LoRA from the result, with Extract LoRA from Files"
        )
    lost = [f"not carried from the recipe of {found.program}: {one}" for one in found.lost]
    paths, notes = _found(recipe, by_hash)
    return Ready(recipe, paths, (*lost, *notes))


def _lora_names() -> set[str]:
    """The names that mean a LoRA in a line: those of no checkpoint."""
    loras, models = (
        {one for name in host.file_names(*folders) for one in _called(name)}
        for folders in (FOLDERS[2:], FOLDERS[:2])
    )
    return loras - models


def _called(name: str) -> tuple[str, str]:
    path = PurePath(name)
    return path.name, path.stem


def _numbers(text: str) -> dict[str, float]:
    """What `a=0.3, b=0.5` says.

    Raises:
        ArgumentError: A part of it is no name and number.
    """
    from ...lora_ops import ArgumentError

    found: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.replace("\n", ",").split(","))):
        name, _, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ArgumentError(f"`{part}` in `values` is no name and number; write `a=0.3, b=0.5`")
        found[name.strip().removeprefix("$")] = value
    return found


def _found(recipe: Recipe, by_hash: bool) -> tuple[dict[str, Path], list[str]]:
    """Where the files of a recipe are, and what is to be said of them.

    Raises:
        ArgumentError: Some are not there.
    """
    from ...lora_ops import ArgumentError, find_files
    from ...lora_ops.report import counted

    folders, sha256 = model_folders(*FOLDERS), _hashing()
    paths: dict[str, Path] = {}
    notes: list[str] = []
    missing: list[str] = []
    for key, file in recipe.files.items():
        one = find_files(
            replace(recipe, files={key: file}), folders, hash_all=by_hash, sha256=sha256
        )
        paths.update(one.paths)
        (notes if key in one.paths else missing).extend(one.notes)
    if missing:
        hint = "" if by_hash else ", or turn `by_hash` on if they have other names here"
        raise ArgumentError(
            f"{counted(len(missing), 'file')} of the recipe missing: {'; '.join(missing)}; put them "
            f"into the folders of ComfyUI's models{hint}"
        )
    # That a name decided is worth a word only where it did not decide alone.
    return paths, [note for note in notes if "the first of" in note]


def _hashing() -> Callable[[Path], str]:
    """What takes the hash of a file, unless it is remembered; Cancel is obeyed between files."""
    from ...lora_ops.files import file_sha256
    from ...lora_ops.files.remembered import remembered

    step = host.progress()

    def take(path: Path) -> str:
        step(0, 1, path.name)
        return remembered(path, partial(file_sha256, path))

    return take


def fingerprint(recipe: str | None) -> str:
    """A value that changes with the files that a recipe names; all files where it is not known yet."""
    if recipe is None:
        return host.fingerprint(None, *FOLDERS)
    return " ".join(host.fingerprint(name, *FOLDERS) for name in _named(recipe))


def _named(recipe: str) -> Iterator[str]:
    """The files of the host's lists whose name stands in a text."""
    for name in host.file_names(*FOLDERS):
        if any(one in recipe for one in _called(name)):
            yield name
