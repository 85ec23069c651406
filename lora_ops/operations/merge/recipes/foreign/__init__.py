"""Recipes of other programs, one reader a file; each gives our document and what it could not carry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from .....errors import ArgumentError, FormatError, LoraOpsError
from .....text import either
from ..checks import check
from . import a1111, chattiori, comfyui, mecha, mergekit, mms, model_mixer, supermerger
from .comfyui_graph import is_graph
from .found import Foreign, mapping, names_by_hash, text

__all__ = ["Foreign", "of_metadata", "of_record", "of_text", "read_foreign"]

_Reader = Callable[[Mapping[str, object], Mapping[str, str]], Foreign]
_BY_TYPE: dict[str, _Reader] = {
    one.TYPE: one.read for one in (a1111, supermerger, model_mixer, chattiori)
}
_MOST = 20_000_000  # bytes of a file of text


def of_record(record: Mapping[str, object], models: Mapping[str, str]) -> Foreign:
    """Read a `sd_merge_recipe`.

    Args:
        record: The recipe.
        models: Names by SHA-256, as far as they are known.

    Raises:
        FormatError: No program is known that writes this, or it is damaged.
    """
    kind = text(record.get("type"))
    if kind not in _BY_TYPE:
        raise FormatError(f"`sd_merge_recipe` is of type `{kind[:60]}`, {either([*_BY_TYPE])}")
    return _checked(_BY_TYPE[kind](record, models))


def of_metadata(metadata: Mapping[str, str]) -> Foreign | None:
    """Read the recipe that another program left in a file; None if none did.

    Args:
        metadata: The file's string map.

    Raises:
        FormatError: There is one, and it is damaged.
    """
    record = mapping(metadata.get("sd_merge_recipe"))
    if record and text(record.get("type")) != "lorakit":
        return of_record(record, names_by_hash(mapping(metadata.get("sd_merge_models"))))
    if mecha_text := metadata.get("mecha_recipe"):
        return _checked(mecha.read(mecha_text))
    for key in ("prompt", "workflow"):
        tree = mapping(metadata.get(key))
        if is_graph(tree):
            return _checked(comfyui.read(tree))
    return None


def read_foreign(path: str | Path, row: int | None = None) -> Foreign:
    """Read a recipe from a file of another program, told by what is in it.

    Args:
        path: A graph of ComfyUI, mergekit's configuration, `.mecha`, a merge plan, supermerger's history,
            or a `sd_merge_recipe` in a file of its own.
        row: Of a history, the merge; None for the last.

    Raises:
        ArgumentError: There is no such file, or the package that reads it is not there.
        FormatError: It is none of these, or damaged.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MOST:
            raise FormatError(f"a recipe of more than {_MOST} bytes", path=path)
        content = path.read_text("utf-8-sig")
    except OSError as error:
        raise ArgumentError(f"the recipe cannot be read: {error.strerror}", path=path) from None
    except UnicodeDecodeError:
        raise FormatError("the recipe is no UTF-8 text", path=path) from None
    try:
        return of_text(content, row)
    except LoraOpsError as error:
        error.path = error.path or path
        raise


def of_text(content: str, row: int | None = None) -> Foreign:
    """Read a recipe of another program from its text.

    Args:
        content: Of any of the files that `read_foreign` takes.
        row: Of a history, the merge; None for the last.

    Raises:
        ArgumentError: The package that reads it is not there.
        FormatError: It is none of these, or damaged.
    """
    if content.lstrip().startswith("{"):
        return _of_json(content)
    if mecha.is_mecha(content):
        return _checked(mecha.read(content))
    if content.startswith(('"ID","time"', "ID,time")):
        return _checked(supermerger.read_history(content, row))
    if mms.is_plan(content):
        return _checked(mms.read(content))
    if "merge_method" in content:
        return _checked(mergekit.read(content))
    raise FormatError(
        "no program is known that writes a recipe like this; what is read are graphs of ComfyUI, "
        "mergekit's configuration, `.mecha`, merge plans, and supermerger's history"
    )


def _of_json(content: str) -> Foreign:
    tree = mapping(content)
    if not tree:
        raise FormatError("the recipe is damaged JSON, or nests too deep")
    if is_graph(tree):
        return _checked(comfyui.read(tree))
    if isinstance(tree.get("sd_merge_recipe"), str | dict):
        models = names_by_hash(mapping(tree.get("sd_merge_models")))
        return of_record(mapping(tree["sd_merge_recipe"]), models)
    if "merge_method" in tree:
        return _checked(mergekit.read(json.dumps(tree)))
    return of_record(tree, {})


def _checked(found: Foreign) -> Foreign:
    """The same, if our document means something: a stranger's numbers and names are in it."""
    try:
        check(found.recipe)
    except ArgumentError as error:
        raise FormatError(f"the recipe of {found.program} means nothing here: {error}") from None
    return found
