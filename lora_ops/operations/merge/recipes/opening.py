"""A recipe from whatever holds one: a document, another program's, or a model that was merged."""

from __future__ import annotations

from pathlib import Path

from ....errors import FormatError
from ....files import open_source
from .ancestry import Ancestor, recipe_of
from .document import read_recipe
from .foreign import read_foreign
from .recipe import RecipeFile

_MODELS = (".safetensors", ".sft", ".gguf", ".safetensors.index.json")


def open_recipe(path: str | Path, row: int | None = None) -> Ancestor:
    """Read the recipe in a file, with those of its inputs as far as they are recorded.

    Args:
        path: A recipe (`.toml`, or the JSON that is in the metadata), one of another program, see
            `foreign.read_foreign`; or a merged model, a folder of diffusers too, whose metadata are read.
        row: Of a history of merges, which; None for the last.

    Raises:
        ArgumentError: There is no such file, or it is a document that means nothing.
        FormatError: It is no recipe that is known, or a model that has none.
    """
    path = Path(path)
    if path.is_dir() or path.name.lower().endswith(_MODELS):
        with open_source(path) as source:
            found = recipe_of(source.metadata, path.name)
        if found.recipe is None:
            raise FormatError(
                "no recipe is recorded in this file: it is no merge, or the program that made it "
                "left none",
                path=path,
            )
        return found
    if path.suffix.lower() == ".toml" or _is_ours(path):
        return Ancestor(RecipeFile(path.name), "lorakit", read_recipe(path))
    found = read_foreign(path, row)
    return Ancestor(RecipeFile(path.name), found.program, found.recipe, (), found.lost)


def _is_ours(path: Path) -> bool:
    """Whether a file begins as a document of ours does in JSON."""
    try:
        with path.open("rb") as file:
            return file.read(64).replace(b" ", b"").startswith(b'{"lorakit":')
    except OSError:
        return False  # whoever reads it says so
