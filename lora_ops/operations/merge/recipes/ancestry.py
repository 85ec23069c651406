"""The record of a merge in the file that it made, and reading it back: the recipe, and those of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ....adapters.metadata.common import Operation, as_json, carried, from_json, history, record
from ....errors import ArgumentError, FormatError
from ....run.inputs import Input
from ....text import plain
from .document import as_json as recipe_json
from .document import from_tree
from .expression import as_expression
from .foreign import of_metadata, of_record
from .foreign.found import mapping, names_by_hash, text
from .recipe import Recipe, RecipeFile

RECIPE = "lorakit.recipe"
_SD_RECIPE, _SD_MODELS = "sd_merge_recipe", "sd_merge_models"
#: From which the recipe, and those of what went in, are read back.
PARENTS = (RECIPE, _SD_MODELS, "modelspec.merged_from")
#: What the base says of itself that is not true of the result.
_DROPPED = (_SD_RECIPE, _SD_MODELS, "modelspec.merged_from", "modelspec.date", "mecha_recipe")
_MOST = 1000  # ancestors
_DEEPEST = 200  # of them with a recipe: one within another is a call within another


@dataclass(frozen=True, slots=True)
class Parent:
    """A file that went into a merge.

    Attributes:
        file: Its name and hash.
        metadata: Its string map.
        legacy_hash: The eight digits by which old web UIs name it; empty where it was not taken.
    """

    file: Input
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    legacy_hash: str = ""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A file of a merge, with the merge that made it, as far as that is recorded.

    Attributes:
        file: Its name and hash.
        program: What made it; empty where nothing is recorded.
        recipe: How; None where nothing is recorded, or it is not understood.
        parents: What went into it, each with the same. A file that is met again has none here.
        lost: What could not be carried of its recipe.
    """

    file: RecipeFile
    program: str = ""
    recipe: Recipe | None = None
    parents: tuple[Ancestor, ...] = ()
    lost: tuple[str, ...] = ()

    def lines(self, indent: str = "") -> Iterator[str]:
        """The tree for people, a line a file."""
        made = f", by {self.program}" if self.program else ""
        how = as_expression(replace(self.recipe, parts={})) if self.recipe else None
        digits = f" ({self.file.sha256[:10]})" if self.file.sha256 else ""
        yield f"{indent}{self.file.name}{digits}{made}{f': {how}' if how else ''}"
        for parent in self.parents:
            yield from parent.lines(indent + "  ")


def merged_metadata(
    recipe: Recipe,
    parents: Mapping[str, Parent],
    version: str,
    *,
    base: str = "",
    v_prediction: bool | None = None,
) -> dict[str, str]:
    """Return the string map of a merged file.

    It has `lorakit.recipe`, from which the file can be made again; `sd_merge_recipe` and `sd_merge_models`,
    which web UIs show, with the recipes of the inputs; `modelspec.merged_from` and, where the kind of
    prediction is known, `modelspec.predict_key`. The rest is what the base says of itself.

    Args:
        recipe: With numbers for all names.
        parents: The inputs by the keys of `recipe.files`.
        version: Of lorakit.
        base: The key of the input whose metadata is carried; empty for none.
        v_prediction: Whether the result predicts v; None where it is not known.
    """
    files = {
        key: replace(file, name=parents[key].file.name, sha256=parents[key].file.sha256)
        if key in parents
        else file
        for key, file in recipe.files.items()
    }
    recipe = replace(recipe, files=files)
    past = parents[base].metadata if base else {}
    found = {key: value for key, value in carried(past).items() if key not in _DROPPED}
    operation = Operation("merge", version, parameters={"recipe": recipe_json(recipe)})
    found |= record(operation, history(past))
    ordered = sorted(parents, key=lambda key: key != base)  # the base first
    found[_SD_RECIPE] = as_json(_shown(recipe, [parents[key] for key in ordered]))
    found[_SD_MODELS] = as_json(_models(parents))
    names = dict.fromkeys(parents[key].file.name for key in ordered)
    found["modelspec.merged_from"] = ", ".join(names)
    if v_prediction is not None:
        found["modelspec.predict_key"] = "v" if v_prediction else "epsilon"
    return found


def _shown(recipe: Recipe, parents: Sequence[Parent]) -> dict[str, object]:
    """What web UIs know of a merge."""
    hashes: list[str | None] = [parent.file.sha256 or None for parent in parents]
    first, second, third = [*hashes, None, None, None][:3]
    methods = dict.fromkeys(step.method for step in recipe.steps)
    return {
        "type": "lorakit",
        "primary_model_hash": first,
        "secondary_model_hash": second,
        "tertiary_model_hash": third,
        "interp_method": as_expression(recipe) or ", ".join(methods),
        "custom_name": recipe.title,
    }


def _models(parents: Mapping[str, Parent]) -> dict[str, object]:
    found: dict[str, object] = {}
    for parent in parents.values():
        metadata = parent.metadata
        for sha256, entry in mapping(metadata.get(_SD_MODELS)).items():
            found.setdefault(sha256, entry)
        if parent.file.sha256:
            own: dict[str, object] = {
                "name": parent.file.name,
                "legacy_hash": parent.legacy_hash or None,
                _SD_RECIPE: metadata.get(_SD_RECIPE),
            }
            if RECIPE in metadata:
                own[RECIPE] = from_json(metadata[RECIPE])
            found[parent.file.sha256] = own
    return found


def recipe_of(metadata: Mapping[str, str], name: str = "this file") -> Ancestor:
    """Read the recipe of a merged file, whichever program made it, and those of its inputs.

    Args:
        metadata: The file's string map.
        name: The file's name.

    Returns:
        The file as the root of a tree. Without a recipe where nothing is recorded.

    Raises:
        FormatError: The file's own recipe is damaged, or of a program that is not known.
    """
    models = mapping(metadata.get(_SD_MODELS))
    program, recipe, lost = _own(metadata.get(RECIPE))
    if recipe is None and (found := of_metadata(metadata)):
        program, recipe, lost = found.program, found.recipe, found.lost
    known = {sha256.lower(): mapping(entry) for sha256, entry in models.items()}
    left = [_MOST]
    parents = _parents(recipe, known, set(), left)
    if left[0] <= 0:
        lost = (*lost, f"more than {_MOST} ancestors: the rest is left out")
    return Ancestor(RecipeFile(name), program, recipe, parents, lost)


def _own(written: object) -> tuple[str, Recipe | None, tuple[str, ...]]:
    """The recipe that lorakit wrote, if it did."""
    if written is None:
        return "", None, ()
    tree = from_json(written) if isinstance(written, str) else written
    try:
        return "lorakit", from_tree(tree), ()
    except ArgumentError as error:
        raise FormatError(f"`{RECIPE}` is damaged: {error}") from None


def _parents(
    recipe: Recipe | None,
    known: Mapping[str, Mapping[str, object]],
    seen: set[str],
    left: list[int],
) -> tuple[Ancestor, ...]:
    found: list[Ancestor] = []
    for file in recipe.files.values() if recipe else ():
        left[0] -= 1
        if left[0] <= 0:
            break
        entry = known.get(file.sha256)
        if entry is None or file.sha256 in seen:
            found.append(Ancestor(file))
            continue
        seen.add(file.sha256)
        try:
            program, own, lost = _own(entry.get(RECIPE))
            shown = mapping(entry.get(_SD_RECIPE))
            if own is None and shown and text(shown.get("type")) != "lorakit":
                foreign = of_record(shown, names_by_hash(known))
                program, own, lost = foreign.program, foreign.recipe, foreign.lost
        except FormatError as error:
            program, own, lost = "", None, (f"its recipe is not read: {plain(str(error))}",)
        parents = _parents(own, known, seen, left) if len(seen) < _DEEPEST else ()
        found.append(Ancestor(file, program, own, parents, lost))
    return tuple(found)
