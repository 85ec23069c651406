"""Convert from file to file, and to the folder that PEFT reads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ...files import FileSource, Output
from ...report import Report
from ...run.devices import Placement
from ...run.workers import Progress
from ..edit import run_edit
from .plan import ConvertOptions, plan_convert_file

if TYPE_CHECKING:
    from typing_extensions import Unpack


def convert_file(
    source: FileSource,
    output: Output,
    format: str | None = None,
    *,
    placement: Placement | None = None,
    version: str = "",
    progress: Progress | None = None,
    **options: Unpack[ConvertOptions],
) -> Report:
    """Write an adapter in another format, or as plain LoRA, or both; see `convert`.

    Args:
        source: The adapter file.
        output: Where to; for `peft` a folder, which is made, unless the name ends as a file's does:
            scales are then in the factors.
        format: kohya, comfy, diffusers or peft, or control-lora of a Control-LoRA; None: that it has, in one file.
        placement: Where to compute; None: the CPU.
        version: Of lorakit, for the record.
        progress: Called after each layer.
        **options: See `ConvertOptions`.

    Raises:
        LoraOpsError: As `convert`; or the output cannot, or must not, be written.
    """
    started = time.perf_counter()
    plan = plan_convert_file(source, output, format, **options)
    return run_edit(plan, started=started, placement=placement, version=version, progress=progress)
