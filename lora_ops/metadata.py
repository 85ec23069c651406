"""Metadata of what lorakit writes: ss_* and modelspec.* for other programs, lorakit.* for the record.

No date and no path is written: the same inputs give the same bytes, and a shared file says nothing
about its maker's disk.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .architectures import Architecture
from .formats import Format
from .report import Report

# The writer puts the SHA-256 of the data section here: kohya's and A1111's model hash.
HASH_KEYS = ("sshs_model_hash",)

# What the tuned checkpoint says of itself that is true of its LoRA too.
_CARRIED = (
    *("modelspec.author", "modelspec.license", "modelspec.usage_hint", "modelspec.tags"),
    *("modelspec.trigger_phrase", "modelspec.thumbnail", "modelspec.description"),
    *("modelspec.prediction_type", "ss_tag_frequency", "ss_datasets"),
)
# By architecture: modelspec.implementation (whose model code) and modelspec.resolution.
_STABILITY = "https://github.com/Stability-AI/generative-models"
_IMPLEMENTATIONS = {
    "sd1": (_STABILITY, "512x512"),
    "sd2": (_STABILITY, "768x768"),
    "sdxl": (_STABILITY, "1024x1024"),
    "flux": ("https://github.com/black-forest-labs/flux", "1024x1024"),
    "flux_schnell": ("https://github.com/black-forest-labs/flux", "1024x1024"),
}


@dataclass(frozen=True, slots=True)
class Input:
    """A file that went into the result.

    Attributes:
        name: File name, without folders.
        sha256: Of the file's bytes; empty where it was not taken.
    """

    name: str
    sha256: str = ""


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
    """
    found = {key: tuned_metadata[key] for key in _CARRIED if key in tuned_metadata}
    found |= _kohya_entries(report, architecture, title)
    found |= _modelspec_entries(architecture, title)
    if format.name != "kohya":
        found["format"] = "pt"  # what the Hugging Face loaders ask for
    found |= {
        "lorakit.version": version,
        "lorakit.operation": "extract",
        "lorakit.rank": rule,
        "lorakit.exact": str(exact),
        "lorakit.seed": str(seed),
        "lorakit.dtype": str(dtype).removeprefix("torch."),
        "lorakit.base": base.name,
        "lorakit.tuned": tuned.name,
        "lorakit.error": f"{report.error:.6g}",
        "lorakit.left_out": f"{report.left_out:.6g}",
        "lorakit.components": _json(
            {name: float(f"{error:.6g}") for name, error in report.components().items()}
        ),
        "lorakit.layers": _json(
            {layer.target: [layer.rank, float(f"{layer.error:.4g}")] for layer in report.layers}
        ),
    }
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


def _kohya_entries(report: Report, architecture: Architecture | None, title: str) -> dict[str, str]:
    ranks = Counter(layer.rank for layer in report.layers if layer.kind == "linear")
    ranks = ranks or Counter(layer.rank for layer in report.layers)
    conv = Counter(
        layer.rank
        for layer in report.layers
        if layer.kind.startswith("conv") and set(layer.shape[2:]) != {1}
    )
    rank = str(next(iter(ranks))) if len(ranks) == 1 else "Dynamic"
    entries = {
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_output_name": title,
        "ss_network_module": architecture.network_module if architecture else "networks.lora",
        "ss_v2": str(bool(architecture and architecture.v2)),
    }
    if conv:
        dim = str(next(iter(conv))) if len(conv) == 1 else "Dynamic"
        entries["ss_network_args"] = _json({"conv_dim": dim, "conv_alpha": dim})
    if architecture and architecture.base_model_version:
        entries["ss_base_model_version"] = architecture.base_model_version
    return entries


def _modelspec_entries(architecture: Architecture | None, title: str) -> dict[str, str]:
    entries = {"modelspec.sai_model_spec": "1.0.1", "modelspec.title": title}
    if architecture is None or architecture.modelspec is None:
        return entries
    entries["modelspec.architecture"] = f"{architecture.modelspec}/lora"
    if architecture.name in _IMPLEMENTATIONS:
        implementation, resolution = _IMPLEMENTATIONS[architecture.name]
        entries["modelspec.implementation"] = implementation
        entries["modelspec.resolution"] = resolution
    return entries


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
