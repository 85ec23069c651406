"""Writing a loaded checkpoint: what has no patches byte for byte, the rest computed in fp32 and rounded once.

Importing this takes the core, and time: nodes do so when they run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...lora_ops import Placement, Report, place, plan_requantise_file
from ...lora_ops.adapters.metadata import Input, Operation, baked_metadata
from ...lora_ops.elements import Element, element_of
from ...lora_ops.files.quantised.scheme import Scheme
from ...lora_ops.files.quantised.source import decoded
from ...lora_ops.files.quantised.storages import SCHEMES
from ...lora_ops.models.architectures import parameters
from ...lora_ops.operations.weights.checkpoint_file import CheckpointFile
from ...lora_ops.operations.weights.gguf_file_plan import GgufPlan
from ...lora_ops.operations.weights.output import SHARD_SIZE, check_place
from ...lora_ops.operations.weights.storing import InScheme, stored_layers
from ...lora_ops.operations.weights.tiles import Planned
from ...lora_ops.operations.weights.written import write_tensor
from ...lora_ops.report import counted
from ...lora_ops.run.job import Job, Outcome, Work
from ...lora_ops.run.output import write
from ...lora_ops.run.stream import stream
from .loaded_checkpoint import LoadedCheckpoint

Progress = Callable[[int, int, str], None]


def written(
    source: LoadedCheckpoint,
    output: Path,
    *,
    dtype: torch.dtype | None,
    to: str | None,
    version: str,
    progress: Progress,
) -> Report:
    """Write a loaded checkpoint into a file, tensor by tensor.

    Args:
        source: What is written.
        output: A `.safetensors` file that is not there.
        dtype: Of the floating point numbers that have no scales; None: as they lie in memory.
        to: How the diffusion model's matrices are stored, with scales: `fp8_scaled`; None: as they lie
            in memory, those under patches too.
        version: Of lorakit, for the record.
        progress: Called after each tensor.

    Raises:
        ArgumentError: There is no such way, or no weight can be written so.
        NonFiniteError: NaN or infinity in a computed weight, or out of the range of the dtype.
        WriteError: The disk is full, or the like; no file is written.
    """
    started = time.perf_counter()
    gguf = None
    if to is None:
        check_place(output, source, [], force=False)
        tensors, notes = _as_held(source, dtype)
    else:
        plan = plan_requantise_file(decoded(source), to, output=output, dtype=dtype)
        tensors, notes, gguf = plan.tensors, plan.notes, plan.gguf
    sink = SavedFile(source, tensors, notes, output, version, gguf)
    jobs = [Job(key, key, math.prod(one.shape)) for key, one in tensors.items()]
    results = stream(Work(jobs, sink.compute), place("cpu"), progress=progress)
    return write(sink, results, started=started)


def _as_held(
    source: LoadedCheckpoint, dtype: torch.dtype | None
) -> tuple[dict[str, Planned], tuple[str, ...]]:
    """How each tensor is written where each stays in its storage, and what is to be said of it."""
    ways: dict[str, Scheme] = {}
    for scheme in SCHEMES.values():
        ways.setdefault(scheme.format, scheme)  # those that come later have older names for it
    known = {one.key: one for one in parameters(source).values()}
    found: dict[str, Planned] = {}
    whole: list[str] = []
    for key, entry in source.entries.items():
        own = source.result_element(key)
        storing = None
        scheme = ways.get(entry.scaled)
        if entry.scaled and scheme and key in known and scheme.fits(entry.shape):
            storing, own = InScheme(known[key], scheme), scheme.element
        elif entry.scaled:
            whole.append(key)
        if dtype is not None and storing is None and _is_plain(source, key, own):
            own = element_of(dtype)
        found[key] = Planned(key, source, key, own, storing=storing)
    kept = (
        f"{counted(len(whole), 'weight')} under patches written as bf16, the first `{whole[0]}`"
        if whole
        else ""
    )
    return found, (kept,) if kept else ()


def _is_plain(source: LoadedCheckpoint, key: str, element: Element) -> bool:
    """Whether a tensor is floating point numbers of their own: no codes, and no scales of any."""
    layer = key.rpartition(".")[0]
    has_scales = f"{layer}.comfy_quant" in source.entries and not key.endswith(".bias")
    return element.is_floating_point and source.shape(key) != (0,) and not has_scales


class SavedFile(CheckpointFile):
    """The checkpoint that is written.

    Args:
        source: What is written.
        tensors: How each tensor is, by key.
        notes: What is to be said of them.
        output: Where to.
        version: Of lorakit, for the record.
        gguf: How it lies in a GGUF file, where it is one.
    """

    def __init__(
        self,
        source: LoadedCheckpoint,
        tensors: Mapping[str, Planned],
        notes: Sequence[str],
        output: Path,
        version: str,
        gguf: GgufPlan | None = None,
    ) -> None:
        self.sources = [source]
        self._source, self._planned, self._notes = source, tensors, tuple(notes)
        self._operation, self._gguf = Operation("save", version), gguf
        super().__init__(
            *(output, source, tensors.values()), shard_size=SHARD_SIZE, force=False, gguf=gguf
        )

    def longest(self, inputs: Sequence[Input]) -> dict[str, str]:
        """The record, which has no numbers."""
        return self._record(inputs)

    def compute(self, keys: Sequence[str], _: Placement) -> list[Outcome[Tensor]]:
        """Compute tensors, each into its place in the file."""
        return [write_tensor(self._planned[key], self.file) for key in keys]

    def report(self) -> Report:
        """The report."""
        skips = self._gguf.skips if self._gguf else ()
        return Report(stored_layers(self.reports), skips, self._notes)

    def metadata(self, inputs: Sequence[Input], report: Report) -> dict[str, str]:
        """The record, beside the graph."""
        return self._record(inputs)

    def _record(self, inputs: Sequence[Input]) -> dict[str, str]:
        return baked_metadata(
            inputs[0], self._source.metadata, (), self._operation, dtype=None, measured={}
        )
