"""What all metadata has in common: the words for what was done, and the record of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from ...files import DATA_HASH
from ...models.architectures import Architecture
from ...report import LayerReport, Report
from ...run.inputs import Input
from ..formats import PEFT_CONFIG, PEFT_METADATA

# The writer puts the SHA-256 of the data section here: kohya's and A1111's model hash.
HASH_KEYS = (DATA_HASH,)

# Hashes of the tensors or of the file: never true of another file.
_HASHES = (*HASH_KEYS, "sshs_legacy_hash", "modelspec.hash_sha256")
_RECORD = "lorakit."
_HISTORY = "history"
_BULKY = ("layers", _HISTORY)
_DEEPEST = 64


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter that went into the result, with what it says of itself.

    Attributes:
        file: Its name and hash.
        metadata: Its string map.
        strength: The user's factor.
        blocks: The user's factors by block, as text; empty where there are none.
    """

    file: Input
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    strength: float = 1.0
    blocks: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """What was done.

    Attributes:
        name: resize, scale, add, bake, unbake.
        version: Of lorakit.
        summary: For the training comment, in a few words: `resized from 128 to 32`.
        parameters: Each is written as `lorakit.<name>`.
    """

    name: str
    version: str
    summary: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Result:
    """The adapter that was written.

    Attributes:
        title: The output's name without its suffix: `ss_output_name` and `modelspec.title`.
        report: Its ranks and errors. Layers of rank 0 are not in the file.
        dtype: Of the factors.
        format: kohya, comfy, diffusers or peft.
        alphas: The stored alpha by target; None or absent: none is stored, which means scale 1.
        modules: What the file calls a target, where it calls it otherwise.
        architecture: Of the model it is for; None if unknown.
        sizes: Inner size of the factors by target, where that is not the rank, as in a LoHa.
        converted: Whether layers of another kind became LoRA.
    """

    title: str
    report: Report
    dtype: torch.dtype
    format: str
    alphas: Mapping[str, float | None] = field(default_factory=dict[str, "float | None"])
    modules: Mapping[str, str] = field(default_factory=dict[str, str])
    architecture: Architecture | None = None
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    converted: bool = False

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        """The report's layers that are in the file: those of rank 0 are not."""
        return tuple(layer for layer in self.report.layers if layer.rank > 0)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by module name, as written."""
        return {self.modules.get(one.target, one.target): one.rank for one in self.layers}


def room_for(metadata: Mapping[str, str], layers: int = 0, longest: int = 0) -> int:
    """Bytes that the metadata of a result may take, for the writer to keep free.

    An estimate from above, and not by much: a budget for the size of a file counts it.

    Args:
        metadata: Of the input; for several inputs, call this for each and add up.
        layers: How many there may be.
        longest: Bytes of the longest target.
    """
    room = 2048 + layers * (longest + 32)
    for key, value in metadata.items():
        if key.removeprefix(_RECORD) in _BULKY[:1]:
            continue
        # A record that becomes history is escaped once more, which doubles it at most.
        times = 2 if key.startswith(_RECORD) else 1
        room += times * (len(json.dumps(key)) + len(json.dumps(value)) + 8)
    # The configuration also names a layer in its two patterns and in its list of targets.
    return room + (
        3 * layers * (longest + 32) if {PEFT_METADATA, PEFT_CONFIG} & metadata.keys() else 0
    )


def as_json(value: object) -> str:
    """Compact JSON text that any file can hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # JSON may escape half a character, which no UTF-8 text can hold.
    return text.encode("utf-8", "replace").decode("utf-8")


def from_json(text: str) -> Any:
    """The value of JSON text; None for other text, or if it nests too deep to write again."""
    try:
        read = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        return None
    return read if _is_shallow(read, _DEEPEST) else None


def _is_shallow(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    members = cast("dict[str, object]", value).values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(member, levels - 1) for member in members)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a number in JSON")
    return value


def carried(metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries of an input that its result keeps: all but hashes and lorakit's own record."""
    return {
        key: value
        for key, value in metadata.items()
        if key not in _HASHES and not key.startswith(_RECORD)
    }


def history(metadata: Mapping[str, str]) -> list[object]:
    """The records of what lorakit did to a file, oldest first, without their lists of layers."""
    earlier = from_json(metadata.get(_RECORD + _HISTORY, ""))
    known = list[object](earlier) if isinstance(earlier, list) else []
    latest = {
        name: _structured(value)
        for key, value in metadata.items()
        if key.startswith(_RECORD) and (name := key.removeprefix(_RECORD)) not in _BULKY
    }
    return [*known, latest] if latest else known


def record(operation: Operation, past: Sequence[object] = ()) -> dict[str, str]:
    """The entries that say what was done, and what was done to the input before."""
    entries = {f"{_RECORD}{name}": value for name, value in operation.parameters.items()}
    entries |= {"lorakit.version": operation.version, "lorakit.operation": operation.name}
    if past:
        entries[_RECORD + _HISTORY] = as_json(past)
    return entries


def measured(report: Report) -> dict[str, str]:
    """The entries with the errors: in total, by component and by layer.

    `lorakit.error` is against the difference of the weights as they are stored; what part of that is
    probably rounding, and the error against the true change, are estimates beside it, where there are any.
    """
    estimates = {
        "lorakit.estimated_error": report.estimated_error,
        "lorakit.rounding": report.rounding,
    }
    told = {name: value for name, value in estimates.items() if value is not None}
    return {
        "lorakit.error": f"{report.error:.6g}",
        **({name: f"{value:.6g}" for name, value in told.items()}),
        "lorakit.left_out": f"{report.left_out:.6g}",
        "lorakit.components": as_json(
            {name: _rounded(error, 6) for name, error in report.components().items()}
        ),
        "lorakit.layers": as_json(
            {layer.target: [layer.rank, _rounded(layer.error, 4)] for layer in report.layers}
        ),
    }


def sources_entry(sources: Sequence[Source], *, with_history: bool) -> dict[str, str]:
    """The entry that lists the inputs of an operation on several."""
    rows: list[dict[str, object]] = []
    for source in sources:
        row: dict[str, object] = {"name": source.file.name, "strength": source.strength}
        if source.file.sha256:
            row["sha256"] = source.file.sha256
        if source.blocks:
            row["blocks"] = source.blocks
        past = history(source.metadata) if with_history else []
        if past:
            row[_HISTORY] = past
        rows.append(row)
    return {"lorakit.sources": as_json(rows)}


def _structured(value: str) -> object:
    """The value of an entry that is JSON text: as text, its escapes would double each time."""
    read = from_json(value)
    return read if isinstance(read, dict | list) else value


def _rounded(value: float, digits: int) -> float | None:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
