"""The file of a Control-LoRA: extracted, streamed, complete under its name or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from ...adapters.formats import CONTROL, CONTROL_MARK, encode_layer
from ...adapters.layers import Layer, LoraLayer, ReplacementLayer
from ...adapters.metadata import Input, metadata_room
from ...errors import MismatchError
from ...files import FileSource, Output, dtype_name, writer_of
from ...files.header import header_room
from ...linalg.storage import rounded
from ...models.architectures import UNET
from ...parts.carry_out import carry_out
from ...parts.whole import Division, Whole
from ...report import Report
from ...run.devices import Placement, place
from ...run.job import Outcome
from ...run.output import Writer
from ...run.workers import Progress
from ..extract.extracted_file import ExtractedFile
from ..extract.extraction import Extraction
from .extract import control_work
from .plan import ControlPlan, own_note

# What the Stability model specification calls such a file, behind the name of the model.
_SPEC, _SPEC_LORA, _SPEC_CONTROL = "modelspec.architecture", "/lora", "/control-lora"


def extract_control_file(
    planned: ControlPlan,
    base: FileSource,
    controlnet: FileSource,
    output: Output,
    *,
    force: bool = False,
    exact: bool = False,
    placement: Placement | None = None,
    seed: int = 0,
    version: str = "",
    progress: Progress | None = None,
    division: Division | None = None,
) -> Report:
    """Run a plan into a file that ComfyUI loads as a ControlNet, and return its report.

    Args:
        planned: From `plan_control_file`, of these two.
        base: The checkpoint with the UNet.
        controlnet: The ControlNet.
        output: The Control-LoRA. One in memory is filled.
        force: Whether the output may replace a file.
        exact: Compute the exact truncation.
        placement: Where to compute; None: the CPU.
        seed: Of the random start.
        version: Of lorakit, for the record.
        progress: Called after each parameter.
        division: How it is done in parts; None: at once.

    Returns:
        The report of what it shares with the UNet; the ControlNet's own parts have no change to miss.

    Raises:
        ArgumentError: The output exists.
        MismatchError: No matrix differs; no file is written.
        FormatError: A checkpoint changed while it was read; no file is written.
        NonFiniteError: NaN or infinity in, or out of the dtype's range.
        WriteError: The disk is full, or the like.
    """
    started = time.perf_counter()
    extraction = Extraction(
        planned.plan, base, controlnet, output, "comfy", force, exact, seed, version
    )
    sink = ControlFile(planned, extraction)
    whole = Whole("extract", output, sink, control_work(planned, exact=exact, seed=seed))
    return carry_out(
        *(whole, placement or place("cpu"), division), started=started, progress=progress
    )


class ControlFile(ExtractedFile):
    """The file of a Control-LoRA.

    Args:
        planned: From `plan_control_file`.
        extraction: What is written, with the plan of its matrices.
    """

    def __init__(self, planned: ControlPlan, extraction: Extraction) -> None:
        super().__init__(extraction)
        self._planned, self._scheme, self._namer = planned, CONTROL, native_name
        self._factored = 0

    def writer(self) -> AbstractContextManager[Writer]:
        """The file."""
        planned = self._planned
        rows = list(_rows(planned))
        longest = max(len(key) for key, _, _ in rows)
        told = metadata_room(len(rows), longest, self.sources[1].metadata)
        room = header_room(rows, spare=told)
        return writer_of(self._output, header_room=room, replace=self._force)

    def rest(self) -> Mapping[str, Tensor]:
        """The ControlNet's own parts, and the mark by which programs know the file."""
        own = {name: _read(self._planned, name) for name in self._planned.own}
        return {**own, CONTROL_MARK: torch.empty(0)}

    def report(self) -> Report:
        """The report.

        Raises:
            MismatchError: No matrix differs.
        """
        if not self._factored:
            base, controlnet = (one.name for one in self.sources[:2])
            raise MismatchError(
                f"no matrix of {controlnet} differs from those of {base}; nothing was written: the ControlNet "
                "is not trained, or it is of another checkpoint"
            )
        found = super().report()
        return replace(found, notes=(*found.notes, own_note(self._planned)))

    def metadata(self, inputs: Sequence[Input], report: Report) -> dict[str, str]:
        """The record of the extraction; what kohya's tools ask of a LoRA is not in it."""
        found = super().metadata(inputs, report)
        found = {key: text for key, text in found.items() if not key.startswith("ss_")}
        if _SPEC in found:
            found[_SPEC] = found[_SPEC].removesuffix(_SPEC_LORA) + _SPEC_CONTROL
        return found | {"lorakit.kind": CONTROL.name}

    def _named(self, outcome: Outcome[Layer]) -> dict[str, Tensor]:
        layer = outcome.value
        if isinstance(layer, ReplacementLayer):
            return {native_name(outcome.name): layer.set_weight}
        if isinstance(layer, LoraLayer):  # whose alpha is its rank, and there is no place for one
            self._factored += 1
            return encode_layer(CONTROL, native_name, outcome.name, replace(layer, alpha=None))
        return {}


def native_name(target: str) -> str:
    """Return what a Control-LoRA calls a target: its name in the UNet."""
    return target.removeprefix(UNET)


def _read(planned: ControlPlan, name: str) -> Tensor:
    source, key = planned.own[name]
    return rounded(source.tensor(key), planned.plan.dtype, name)


def _rows(planned: ControlPlan) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Key, dtype and largest shape of everything in the file."""
    dtype = dtype_name(planned.plan.dtype)
    for both in planned.plan.pairing.candidates:
        name, rank = native_name(both.target), max(both.shape)
        yield f"{name}.up", dtype, (both.shape[0], rank, *(1 for _ in both.shape[2:]))
        yield f"{name}.down", dtype, (rank, *both.shape[1:])
    for both in planned.whole:
        yield native_name(both.name), dtype, both.shape
    for name, (source, key) in planned.own.items():
        yield name, dtype, source.shape(key)
    yield CONTROL_MARK, dtype_name(torch.float32), (0,)
