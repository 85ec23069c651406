"""Which components are merged, said by a recipe: one that is not comes from the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...adapters.strengths.rules import parse_rules
from ...errors import ArgumentError
from ...source import TensorSource
from .matched import Model
from .recipes.recipe import Recipe

#: Those that are merged unless a recipe says otherwise.
COMPONENTS = ("unet", "te")


def with_components(
    recipe: Recipe, components: Sequence[str], base: Model, sources: Mapping[str, TensorSource]
) -> Recipe:
    """Return a recipe that merges these components and no others, whoever runs it.

    Args:
        recipe: Its own parts stay.
        components: Of `unet`, `te` and `vae`.
        base: The checkpoint that the others are taken from.
        sources: The files by the recipe's names.
    """
    held = {one.component for one in base.parameters.values()}
    own = next(name for name, source in sources.items() if source is base.source)
    parts = {part: own for part in COMPONENTS if part in held and part not in components}
    parts |= {part: recipe.steps[-1].name for part in components if part in held - {*COMPONENTS}}
    return replace(recipe, parts=parts | dict(recipe.parts))


def whole_parts(recipe: Recipe) -> set[str]:
    """Components that the parts of a recipe are of."""
    return {"te" if part.startswith("te") else part for part in recipe.parts}


def part_targets(recipe: Recipe, base: Model, names: Sequence[str]) -> dict[str, str]:
    """Return the file or step that gives a target, where it is not the last step.

    Args:
        recipe: With parts.
        base: The checkpoint that the result has the names of.
        names: Targets of all that is merged.

    Raises:
        ArgumentError: The base has no such part.
    """
    found: dict[str, str] = {}
    for part, name in recipe.parts.items():
        if part == "vae":
            targets = {one.target for one in base.parameters.values() if one.component == "vae"}
        else:
            (rule,) = parse_rules(names, where=[f"{part}=1"])
            targets = rule.names
        if not targets:
            raise ArgumentError(f"parts: {base.source.name} has no `{part}`")
        found |= dict.fromkeys(targets, name)
    return found
