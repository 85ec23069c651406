"""The plan of a scaling: what will be done to which layer, known from headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ...adapters.adapter import Adapter
from ...adapters.formats import decode, format_named
from ...adapters.metadata import Input, Operation, Result, Source, edited_metadata
from ...adapters.outline import outline
from ...adapters.strengths.ingredient import Ingredient
from ...files import Output
from ...report import Skip
from ...run.inputs import paths_of
from ..edit import EditPlan, Foreseen, planned_work
from ..output import draft_of
from ..peft_folder import check_written, keeps_alpha
from ..preview import PlannedLayer, planned_layer, planned_skip, stored_size
from ..reasons import STRENGTH_ZERO
from .scale import check_proportional, scale_work


def plan_scale_file(ingredient: Ingredient, output: Output, *, force: bool = False) -> EditPlan:
    """Check everything that can be checked before the work begins, and plan it.

    Args:
        ingredient: The adapter file and its strengths.
        output: Where to.
        force: Whether the output may replace a file.

    Raises:
        LoraOpsError: As `scale`, as far as headers tell; or the output cannot, or must not, be
            written.
    """
    source = ingredient.source
    check_written(output, paths_of(source), source, force=force)
    adapter = decode(source)
    factors = ingredient.strengths(adapter.layers)
    has_alpha = keeps_alpha(output, format_named(adapter.format), adapter.keys)
    work = scale_work(adapter, factors, has_alpha=has_alpha)
    return EditPlan(
        draft_of(source, adapter, output, force),
        partial(planned_work, work),
        partial(_describe, ingredient),
        partial(foresee_scale, adapter, factors, has_alpha=has_alpha),
        f"scaled by {ingredient.strength:g}",
        {"strength": f"{ingredient.strength:g}"},
        [Path(source.name).name],
    )


def _describe(
    ingredient: Ingredient, version: str, inputs: Sequence[Input], result: Result
) -> dict[str, str]:
    record = ingredient.record(inputs[0])
    told = {"strength": f"{ingredient.strength:g}"}
    told |= {"blocks": record.blocks} if record.blocks else {}
    summary = f"scaled by {ingredient.strength:g}" + (
        f" ({record.blocks})" if record.blocks else ""
    )
    operation = Operation("scale", version, summary, told)
    return edited_metadata(Source(inputs[0], ingredient.source.metadata), operation, result)


def foresee_scale(adapter: Adapter, factors: Mapping[str, float], *, has_alpha: bool) -> Foreseen:
    """Say what will become of the layers, from headers alone.

    Args:
        adapter: Whose.
        factors: The strength of each target.
        has_alpha: Whether the result has a place for alphas.

    Raises:
        UnsupportedLayerError: As `scale`.
    """
    planned: list[PlannedLayer] = []
    skips: list[Skip] = []
    size = 0
    for target, layer in outline(adapter.layers).items():
        check_proportional(target, layer)
        strength = factors[target]
        if strength == 0:
            skips.append(planned_skip(target, layer, STRENGTH_ZERO))
            continue
        size += stored_size(layer.times(target, strength, has_alpha=has_alpha))
        planned.append(planned_layer(target, layer, f"times {strength:g}"))
    return Foreseen(planned, size, skips)
