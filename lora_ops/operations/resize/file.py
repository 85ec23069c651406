"""Resize from file to file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ...files import FileSource, Output
from ...linalg.ranks.budgets import Budget
from ...linalg.ranks.rules import RankRule
from ...report import Report
from ...run.devices import Placement
from ...run.workers import Progress
from ..edit import run_edit
from .plan import ResizeOptions, plan_resize_file

if TYPE_CHECKING:
    from typing_extensions import Unpack


def resize_file(
    source: FileSource,
    output: Output,
    rule: str | int | RankRule | Budget,
    *,
    placement: Placement | None = None,
    version: str = "",
    progress: Progress | None = None,
    **options: Unpack[ResizeOptions],
) -> Report:
    """Write an adapter at other ranks; see `resize`.

    Args:
        source: The adapter file.
        output: Where to.
        rule: See `ranks` and `budgets`; a size is that of the file as written.
        placement: Where to compute; None: the CPU.
        version: Of lorakit, for the record.
        progress: Called after each layer.
        **options: See `ResizeOptions`.

    Raises:
        LoraOpsError: As `resize`; or the output cannot, or must not, be written.
    """
    started = time.perf_counter()
    plan = plan_resize_file(source, output, rule, **options)
    return run_edit(plan, started=started, placement=placement, version=version, progress=progress)
