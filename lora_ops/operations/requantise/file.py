"""Requantise from file to file: streamed in, streamed out, complete under its name or not at all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...adapters.metadata import Input, Operation, baked_metadata
from ...parts.carry_out import carry_out
from ...parts.whole import Division, Whole
from ...report import Report
from ...run.devices import Placement, place
from ...run.job import Outcome, Work
from ...run.workers import Progress
from ..weights.checkpoint_file import CheckpointFile
from ..weights.output import SHARD_SIZE
from ..weights.storing import stored_layers
from ..weights.storing_plan import kept_metadata
from ..weights.written import tensor_jobs, write_tensor
from .plan import RequantisePlan


def requantise_file(
    plan: RequantisePlan,
    output: Path,
    *,
    force: bool = False,
    version: str = "",
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
    division: Division | None = None,
) -> Report:
    """Run a plan into a file, or into shards and their index, and return its report.

    The report's layers are the weights that are written with scales: the norm of each, and of what that
    has changed. One that is stored so already is copied.

    Args:
        plan: From `plan_requantise_file`.
        output: A `.safetensors` file; or an index, `.safetensors.index.json`; or a `.gguf` file.
        force: Whether the output may replace files.
        version: Of lorakit, for the record.
        shard_size: Most bytes of data in a shard, where the checkpoint is no index itself.
        progress: Called after each tensor.
        division: How it is done in parts; None: at once.

    Raises:
        ArgumentError: The output exists.
        FormatError: The checkpoint changed while it was read; no file is written.
        NonFiniteError: NaN or infinity in a weight that would be written with scales.
        WriteError: The disk is full, or the like; no file is written.
    """
    started = time.perf_counter()
    sink = RequantisedFile(plan, output, shard_size, version, force)
    whole = Whole("requantise", output, sink, Work(tensor_jobs(plan.tensors), sink.compute))
    return carry_out(whole, place("cpu"), division, started=started, progress=progress)


class RequantisedFile(CheckpointFile):
    """The checkpoint that is written.

    Args:
        plan: From `plan_requantise_file`.
        output: Where to.
        shard_size: See `requantise_file`.
        version: Of lorakit, for the record.
        force: Whether the output may replace files.
    """

    def __init__(
        self, plan: RequantisePlan, output: Path, shard_size: int, version: str, force: bool
    ) -> None:
        self.sources = [plan.checkpoint]
        self._plan, self._version = plan, version
        tensors = plan.tensors.values()
        super().__init__(
            *(output, plan.checkpoint, tensors), shard_size=shard_size, force=force, gguf=plan.gguf
        )

    def longest(self, inputs: Sequence[Input]) -> dict[str, str]:
        """The record, with the longest numbers."""
        return self._record(inputs, -1.23456e-300)

    def compute(self, keys: Sequence[str], _: Placement) -> list[Outcome[Tensor]]:
        """Compute tensors, each into its place in the file."""
        return [write_tensor(self._plan.tensors[key], self.file) for key in keys]

    def report(self) -> Report:
        """The report."""
        skips = self._plan.gguf.skips if self._plan.gguf else ()
        return Report(stored_layers(self.reports), skips, self._plan.notes)

    def metadata(self, inputs: Sequence[Input], report: Report) -> dict[str, str]:
        """The record, beside what the checkpoint says of itself."""
        return self._record(inputs, report.error)

    def _record(self, inputs: Sequence[Input], error: float) -> dict[str, str]:
        operation = Operation("requantise", self._version)
        told = self._plan.checkpoint.metadata
        found = baked_metadata(
            inputs[0], told, (), operation, dtype=None, measured={"error": error}
        )
        kept = kept_metadata(self._plan.tensors, self._plan.checkpoint)
        return {**found, **self._plan.wanted.record(), **kept}
