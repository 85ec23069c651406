"""Metadata of an extracted adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from ...linalg.storage import spelled
from ...models.architectures import Architecture
from ...report import Report
from ...run.inputs import Input
from ..formats import Format
from .common import as_json, measured
from .kohya import ARGUMENTS, LYCORIS, model_entries, modelspec_entries, numbers

# What the tuned checkpoint says of itself that is true of its LoRA too.
_CARRIED = (
    *("modelspec.author", "modelspec.license", "modelspec.usage_hint", "modelspec.tags"),
    *("modelspec.trigger_phrase", "modelspec.thumbnail", "modelspec.description"),
    *("modelspec.prediction_type", "ss_tag_frequency", "ss_datasets"),
)


def extraction_metadata(
    report: Report,
    *,
    title: str,
    rule: str,
    exact: bool,
    seed: int,
    dtype: torch.dtype,
    format: Format,
    architecture: Architecture | None,
    base: Input,
    tuned: Input,
    tuned_metadata: Mapping[str, str],
    version: str,
    kind: str = "lora",
    arguments: Mapping[str, str] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """Return the string map of an extracted LoRA; `HASH_KEYS` are left to the writer.

    Args:
        report: Of the extraction: ranks, errors.
        title: The output's name without its suffix: `ss_output_name` and `modelspec.title`.
        rule: The rank rule as text.
        exact: Whether the exact truncation was computed.
        seed: Of the random start.
        dtype: Of the factors.
        format: How the tensors are named.
        architecture: Of the checkpoints; None if unknown.
        base: The base checkpoint.
        tuned: The tuned checkpoint.
        tuned_metadata: Its string map, some of which is carried over.
        version: Of lorakit.
        kind: What the changes became.
        arguments: What LyCORIS records of a network of that kind; None or empty for kohya's own.
        sizes: By target, what an alpha is divided by, where that is not the rank of the change.
    """
    found = {key: tuned_metadata[key] for key in _CARRIED if key in tuned_metadata}
    found |= _kohya_entries(report, architecture, title, arguments or {}, sizes)
    found |= modelspec_entries(architecture, title)
    if format.name != "kohya":
        found["format"] = "pt"  # what the Hugging Face loaders ask for
    found |= {
        "lorakit.version": version,
        "lorakit.operation": "extract",
        "lorakit.kind": kind,
        "lorakit.rank": rule,
        "lorakit.exact": str(exact),
        "lorakit.seed": str(seed),
        "lorakit.dtype": spelled(dtype),
        "lorakit.base": base.name,
        "lorakit.tuned": tuned.name,
        **measured(report),
    }
    if report.searches:
        told = (f"{dtype} {count}" for dtype, count in report.searches.items())
        found["lorakit.search"] = ", ".join(told)
    for side, file in (("base", base), ("tuned", tuned)):
        if file.sha256:
            found[f"lorakit.{side}_sha256"] = file.sha256
    return found


def metadata_room(layers: int, longest: int, metadata: Mapping[str, str]) -> int:
    """Bytes that the metadata of an extraction may take, for the writer to keep free.

    Args:
        layers: How many there may be.
        longest: Bytes of the longest target.
        metadata: Of the tuned checkpoint.
    """
    carried = sum(len(json.dumps(metadata[key])) for key in _CARRIED if key in metadata)
    return 4096 + 2 * carried + layers * (longest + 32)


def _kohya_entries(
    report: Report,
    architecture: Architecture | None,
    title: str,
    arguments: Mapping[str, str],
    sizes: Mapping[str, int] | None,
) -> dict[str, str]:
    found = numbers(report.layers, sizes=sizes)
    entries = {
        "ss_network_dim": found.rank,
        "ss_network_alpha": found.alpha,
        "ss_output_name": title,
        **model_entries(architecture),
    }
    told: dict[str, str] = dict(arguments)
    if told:
        entries["ss_network_module"] = LYCORIS
    if found.conv is not None:
        rank, alpha = found.conv
        told |= {"conv_dim": rank, "conv_alpha": alpha}
    if told:
        entries[ARGUMENTS] = as_json(told)
    return entries
