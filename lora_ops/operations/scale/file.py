"""Scale from file to file."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ...adapters.formats import decode, format_named
from ...adapters.metadata import Input, Operation, Result, Source, edited_metadata
from ...adapters.strengths.ingredient import Ingredient
from ...files import Output
from ...report import Report
from ...run.inputs import paths_of
from ...run.workers import Progress
from ..output import draft_of
from ..peft_folder import check_written, keeps_alpha, write_result
from .scale import run_scale


def scale_file(
    ingredient: Ingredient,
    output: Output,
    *,
    force: bool = False,
    version: str = "",
    progress: Progress | None = None,
) -> Report:
    """Write an adapter at other strengths; see `scale`.

    Args:
        ingredient: The adapter file and its strengths.
        output: Where to.
        force: Whether the output may replace a file.
        version: Of lorakit, for the record.
        progress: Called after each layer.

    Raises:
        LoraOpsError: As `scale`; or the output cannot, or must not, be written.
    """
    started = time.perf_counter()
    source = ingredient.source
    check_written(output, paths_of(source), source, force=force)
    adapter = decode(source)
    factors = ingredient.strengths(adapter.layers)

    def describe(inputs: Sequence[Input], result: Result) -> dict[str, str]:
        record = ingredient.record(inputs[0])
        told = {"strength": f"{ingredient.strength:g}"}
        told |= {"blocks": record.blocks} if record.blocks else {}
        summary = f"scaled by {ingredient.strength:g}" + (
            f" ({record.blocks})" if record.blocks else ""
        )
        operation = Operation("scale", version, summary, told)
        return edited_metadata(Source(inputs[0], source.metadata), operation, result)

    has_alpha = keeps_alpha(output, format_named(adapter.format), adapter.keys)
    results = run_scale(adapter, factors, has_alpha=has_alpha, progress=progress)
    draft = draft_of(source, adapter, output, force)
    return write_result(draft, results, describe, started=started)
