"""What the options of `lorakit merge` make of a recipe: its parts, numbers, output, or a LoRA of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..lora_ops import (
    ArgumentError,
    MergedSource,
    MergeOptions,
    Plan,
    Recipe,
    TensorSource,
    plan_file,
    plan_merge,
)
from ..lora_ops.elements import element_named, loadable
from ..lora_ops.files import check_output
from ..lora_ops.operations.merge.components import COMPONENTS
from ..lora_ops.operations.merge.recipes.checks import FORMATS, check
from ..lora_ops.operations.weights.output import SHARD_SIZE, is_index
from ..lora_ops.run.inputs import paths_of
from ..lora_ops.text import either, parse_size, plain
from .merge_request import Request

_RANK = "32"
_COMPONENTS = (*COMPONENTS, "vae")


def with_options(
    recipe: Recipe,
    request: Request,
    component: Sequence[str],
    dtype: Sequence[str],
    values: Sequence[str],
    *,
    rounding: str,
    keep: str,
) -> tuple[Recipe, list[str]]:
    """Return a recipe with what the options say of its parts, its numbers and its output.

    Args:
        recipe: As it was read.
        request: Opens the files that components are taken from.
        component: `NAME`, or `NAME=FILE`.
        dtype: `D`, or `NAME=D`.
        values: `NAME=NUMBER`.
        rounding: See `Recipe.with_output`.
        keep: See there.

    Returns:
        The recipe with numbers for all names, and the components that are merged.

    Raises:
        ArgumentError: One of them means nothing.
    """
    merged = [one for text in component if "=" not in text for one in text.split(",")]
    for one in merged:
        if one not in _COMPONENTS:
            raise ArgumentError(f"component `{plain(one)}` is {either(_COMPONENTS)}")
    parts: dict[str, str] = {}
    for text in component:
        name, equals, path = text.partition("=")
        if equals and not (name and path):
            raise ArgumentError(
                f"component `{plain(text)}`: write PART=MODEL, as in vae=v.safetensors"
            )
        if name in parts or (equals and name in merged):
            raise ArgumentError(f"component `{plain(name)}` is given twice: merge it, or take it")
        if equals:
            parts[name], recipe = request.place(recipe, path)
    recipe = replace(recipe, parts={**recipe.parts, **parts}).bind(_numbers(recipe, values))
    dtypes = dict(recipe.output.dtype)
    for text in (one for texts in dtype for one in texts.split(",")):
        name, equals, asked = text.partition("=")
        dtypes |= {name: asked} if equals else {"all": name}
    recipe = recipe.with_output(dtype=dtypes, rounding=rounding, keep=keep)
    check(recipe)
    return recipe, merged or list(COMPONENTS)


def _numbers(recipe: Recipe, values: Sequence[str]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for text in values:
        name, _, number = text.partition("=")
        name = name.strip().removeprefix("$")
        if name in numbers:
            raise ArgumentError(f"`${plain(name)}` is given twice")
        try:
            numbers[name] = float(number)
        except ValueError:
            raise ArgumentError(f"`{plain(text)}`: write NAME=NUMBER, as in a=0.3") from None
    missing = [name for name in recipe.values if name not in numbers]
    if missing:
        raise ArgumentError(f"`${missing[0]}` has no value; give one, as in --set {missing[0]}=0.3")
    return numbers


def check_used(
    is_lora: bool, output: Path, *, parts: Sequence[str], dtype: Sequence[str], **given: object
) -> None:
    """Refuse options that what is written has no use for.

    Args:
        is_lora: Whether a LoRA is written, not a model.
        output: Where to.
        parts: `NAME`, or `NAME=FILE`.
        dtype: `D`, or `NAME=D`.
        **given: Values of other options; None, empty or False: not given.

    Raises:
        ArgumentError: One of them would change nothing.
    """
    names = {f"--{name.replace('_', '-')}": value for name, value in given.items() if value}
    if is_lora:
        names.pop("--full-differences", None)
        names |= {f"--dtype {one}": one for one in dtype if "=" in one}
        names |= {f"--component {one}": one for one in parts if one.partition("=")[0] == "vae"}
        if names:
            raise ArgumentError(f"{next(iter(names))} is for a model, and a LoRA is written")
    elif "--full-differences" in names:
        raise ArgumentError("--full-differences is for a LoRA; write one with --rank")
    elif "--shard-size" in names and not is_index(output):
        raise ArgumentError(
            "--shard-size is for shards, whose name ends in `.safetensors.index.json`", path=output
        )


def shard_bytes(text: str) -> int:
    """Most bytes of a shard, from a size or a format of a recipe."""
    return SHARD_SIZE if text in FORMATS else parse_size(text)


def format_notes(recipe: Recipe, output: Path) -> Iterator[str]:
    """Say where the output's name is that of another format than the recipe's: the name decides."""
    asked = recipe.output.format
    is_one = output.name.lower().endswith(".safetensors")
    if asked and is_one != (asked == "single"):
        yield f'the recipe\'s format is "{asked}"; {output.name} is {"one file" if is_one else "not"}'


def as_lora(
    recipe: Recipe,
    request: Request,
    rule: str | None,
    output: Path,
    force: bool,
    options: MergeOptions,
    full_differences: bool,
) -> tuple[Plan, TensorSource, MergedSource]:
    """Plan the extraction of a merge, which is not written, from its base.

    Args:
        recipe: What is merged, in float32, whatever its output says; that is the LoRA's dtype.
        request: Its files.
        rule: Of ranks; None: the recipe's.
        output: Where the LoRA is to go.
        force: Whether it may replace a file.
        options: See `plan_merge`.
        full_differences: Whether it holds changes without a low-rank form, too.

    Returns:
        The plan, and the two checkpoints that it is of.
    """
    plan = plan_merge(recipe.with_output(dtype="fp32"), request.sources, **options)
    asked = replace(plan.recipe.output, dtype=recipe.output.dtype)
    merged = MergedSource(plan, replace(plan.recipe, output=asked))
    stored = plan.base.element(next(key for key, one in plan.tensors.items() if len(one.shape) > 1))
    name = recipe.output.dtype.get("all")
    found = plan_file(
        plan.base,
        merged,
        rule or recipe.output.rank or _RANK,
        output=output,
        force=force,
        full_differences=full_differences,
        dtype=element_named(name) if name else stored if stored == loadable(stored) else None,
    )
    check_output(output, paths_of(*request.sources.values()), force=force)
    return found, plan.base, merged
