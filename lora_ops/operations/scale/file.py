"""Scale from file to file."""

from __future__ import annotations

import time

from ...adapters.strengths.ingredient import Ingredient
from ...files import Output
from ...report import Report
from ...run.workers import Progress
from ..edit import run_edit
from .plan import plan_scale_file


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
    plan = plan_scale_file(ingredient, output, force=force)
    return run_edit(plan, started=started, version=version, progress=progress)
