"""LoRAs into a checkpoint by a method on the elements of its weights: a merge whose terms are they."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...adapters.distilled import check_places, is_distilled
from ...adapters.strengths.ingredient import Ingredient
from ...errors import ArgumentError
from ...source import TensorSource
from ..methods import ALIASES, FACTORED, MERGE_METHODS, METHODS, Element
from ..methods.table import nearest
from .recipes.recipe import Recipe, RecipeFile, Step, Term

_BASE, _MADE, _WITH = "checkpoint", "step1", "step2"
#: Methods on the elements of changes. The result of others is a LoRA, which `add` makes without loss.
BAKE_METHODS = tuple(
    name
    for name in (*MERGE_METHODS, *ALIASES)
    if (found := MERGE_METHODS[ALIASES.get(name, (name,))[0]]).of == "changes"
    and isinstance(found.how, Element)
)


def recipe_of_loras(
    checkpoint: TensorSource,
    ingredients: Sequence[Ingredient],
    method: str,
    parameters: Mapping[str, float | str] | None = None,
    *,
    seed: int | None = None,
    keep_whole: Sequence[int] | None = None,
) -> tuple[Recipe, dict[str, TensorSource], tuple[str, ...]]:
    """Return the merge that bakes adapters into a checkpoint by a method, its files by name, and notes.

    Strengths are in the changes, before anything is chosen. What is kept whole is added to the method's result, in one
    pass and rounded once.

    Args:
        checkpoint: What is changed.
        ingredients: The adapters, each with its strength.
        method: In `BAKE_METHODS`; it works on the elements of each weight.
        parameters: The method's own.
        seed: Of random masks, and of rounding by chance.
        keep_whole: Places of ingredients that a method on elements does not see; None: those that by their name or
            metadata distil a model into few steps.

    Raises:
        ArgumentError: There is no such method, it works on factors, a place is of none, or nothing is left for it.
    """
    given = dict(parameters or {})
    _check(method, given.pop("scope", "element"))
    keys = [f"lora{at}" for at in range(1, len(ingredients) + 1)]
    sources = {_BASE: checkpoint}
    sources |= {key: one.source for key, one in zip(keys, ingredients, strict=True)}
    files = {
        key: RecipeFile(Path(one.name).name, kind="" if key == _BASE else "lora")
        for key, one in sources.items()
    }
    held = [one.source for one in ingredients]
    found = [at for at, one in enumerate(held) if is_distilled(one.name, one.metadata)]
    kept = check_places(found if keep_whole is None else keep_whole, len(held))
    terms = [
        Term(key, weight=one.strength, blocks=one.blocks or "", where=tuple(one.where))
        for key, one in zip(keys, ingredients, strict=True)
    ]
    seen = [term for at, term in enumerate(terms) if at not in kept]
    if not seen:
        raise ArgumentError(f"all is kept whole, and nothing is left for method `{method}`")
    thinned, legacy = str(given.pop("sparsify", "none")), str(given.pop("legacy", ""))
    steps = [Step(_MADE, tuple(seen), method, _BASE, thinned, legacy, seed, given)]
    if kept:
        whole = tuple(terms[at] for at in sorted(kept))
        steps.append(Step(_WITH, whole, "sum", _MADE, seed=seed))
    notes = tuple(
        f"{ingredients[at].source.name} is added as it is, to what `{method}` makes of the others"
        for at in sorted(kept)
    )
    return Recipe(tuple(steps), files), sources, notes


def _check(method: str, scope: object) -> None:
    """Refuse what has no result on the elements of a weight.

    Raises:
        ArgumentError: Says what can be done instead.
    """
    if method in BAKE_METHODS and scope == "element":
        return
    if method in FACTORED or method in METHODS:
        where = f" at the scope `{scope}`" if method in BAKE_METHODS else ""
        raise ArgumentError(
            f"method `{method}`{where} makes a LoRA, without loss; add the LoRAs by it first, and bake the sum"
        )
    raise ArgumentError(f"unknown method `{method}`{nearest(method, dict.fromkeys(BAKE_METHODS))}")
