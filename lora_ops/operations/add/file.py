"""Add from files to a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...adapters.strengths.ingredient import Ingredient
from ...files import Output
from ...linalg.ranks.rules import RankRule
from ...report import Report
from ...run.devices import Placement
from ...run.workers import Progress
from ..edit import run_edit
from .plan import AddOptions, plan_add_files

if TYPE_CHECKING:
    from typing_extensions import Unpack


def add_files(
    ingredients: Sequence[Ingredient],
    output: Output,
    rule: str | int | RankRule | None = None,
    *,
    placement: Placement | None = None,
    version: str = "",
    progress: Progress | None = None,
    **options: Unpack[AddOptions],
) -> Report:
    """Write the sum of adapters; see `add`.

    Args:
        ingredients: The adapter files and their strengths.
        output: Where to.
        rule: How many directions a layer of the sum gets; None: all, exactly.
        placement: Where to compute; None: the CPU.
        version: Of lorakit, for the record.
        progress: Called after each layer.
        **options: See `AddOptions`.

    Raises:
        LoraOpsError: As `add`; or the output cannot, or must not, be written.
    """
    started = time.perf_counter()
    plan = plan_add_files(ingredients, output, rule, **options)
    return run_edit(plan, started=started, placement=placement, version=version, progress=progress)
