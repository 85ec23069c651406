"""lorakit bake --method: LoRAs into a checkpoint by a method on the elements of its weights, which is a merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..version import __version__
from .control import Ending
from .options import foretell

if TYPE_CHECKING:
    from ..lora_ops import Convention, FileSource, Ingredient


@dataclass(frozen=True, slots=True)
class Storing:
    """How the result is stored, as the options say it; see `bake`."""

    dtype: str | None
    to: str | None
    whole: tuple[str, ...]
    quantise: tuple[str, ...]
    rounding: str | None


def bake_by_method(
    model: FileSource,
    ingredients: Sequence[Ingredient],
    output: Path,
    method: str,
    places: Sequence[int] | None,
    seed: int | None,
    storing: Storing,
    ending: Ending,
    *,
    allow_partial: bool,
    dora: Convention,
) -> None:
    """Merge LoRAs into a checkpoint, and say what came of it.

    Args:
        model: The checkpoint.
        ingredients: The LoRAs.
        output: What is written.
        method: `NAME[,PARAMETER=VALUE]`.
        places: Of LoRAs that the method does not see; None: those that are recognised.
        seed: Of random masks and of rounding.
        storing: How the result is stored.
        ending: Whether to write, and what to say.
        allow_partial: Whether layers that the checkpoint has no weight for are left out.
        dora: Whose convention, of kinds that programs read differently.
    """
    from ..lora_ops import merge_file, plan_merge_file, preview_merge, recipe_of_loras
    from ..terminal.merged import show_merged
    from ..terminal.progress import progress_bar
    from .options import parse_dtype
    from .terms import parse_method

    name, parameters = parse_method(method)
    parse_dtype(storing.dtype)
    recipe, sources, notes = recipe_of_loras(
        *(model, ingredients, name, parameters), seed=seed, keep_whole=places
    )
    recipe = recipe.with_output(dtype=storing.dtype or "", rounding=storing.rounding or "")
    plan = plan_merge_file(
        recipe,
        sources,
        output=output,
        force=ending.force,
        to=storing.to,
        whole=storing.whole,
        quantise=storing.quantise,
        allow_partial=allow_partial,
        dora=dora,
    )
    plan = replace(plan, notes=(*notes, *plan.notes))
    if ending.dry_run:
        foretell(preview_merge(plan, output), json_to=ending.json_to)
        return
    with progress_bar("baking") as progress:
        report = merge_file(
            *(plan, output),
            force=ending.force,
            version=__version__,
            progress=progress,
            division=ending.asked,
        )
    ending.tell(report, show_merged, output)
