"""The ss_* and modelspec.* entries that say what a file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...models.architectures import Architecture
from ...report import LayerReport
from .common import Result, as_json, from_json

COMMENT = "ss_training_comment"
ARGUMENTS = "ss_network_args"
LYCORIS = "lycoris.kohya"
"""The module of networks of other kinds than kohya's own."""
# Ranks and alphas by block, as they were trained: untrue of the result, whose record has its own.
_BY_BLOCK = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
_CONV = ("conv_dim", "conv_alpha")
# What LyCORIS records: which kind the network was, and the settings of that kind.
_OF_KIND = ("algo", "factor", "decompose_both", "full_matrix", "use_tucker", "use_cp")
_VARIOUS = "Dynamic"

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
class Numbers:
    """Rank and alpha as kohya writes them: a number, or `Dynamic` where layers differ.

    Attributes:
        rank, alpha: Of linears and 1x1 convolutions.
        conv: Rank and alpha of larger kernels; None where there are none.
    """

    rank: str
    alpha: str
    conv: tuple[str, str] | None


def numbers(
    layers: Sequence[LayerReport],
    alphas: Mapping[str, float | None] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Numbers:
    """Return what the layers have in common; an alpha that is not stored counts as the rank."""
    stored = alphas or {}
    ranks_of = {layer.target: (sizes or {}).get(layer.target, layer.rank) for layer in layers}

    def common(some: Sequence[LayerReport]) -> tuple[str, str]:
        ranks = {str(ranks_of[layer.target]) for layer in some}
        numbers = {_number(stored.get(one.target), ranks_of[one.target]) for one in some}
        return _one(ranks), _one(numbers)

    linear = [layer for layer in layers if layer.kind == "linear"]
    conv = [
        layer for layer in layers if layer.kind.startswith("conv") and set(layer.shape[2:]) != {1}
    ]
    rank, alpha = common(linear or layers)
    return Numbers(rank, alpha, common(conv) if conv else None)


def model_entries(architecture: Architecture | None) -> dict[str, str]:
    """What kohya's tools ask about the model that a new file is for."""
    entries = {
        "ss_network_module": architecture.network_module if architecture else "networks.lora",
        "ss_v2": str(bool(architecture and architecture.v2)),
    }
    if architecture and architecture.base_model_version:
        entries["ss_base_model_version"] = architecture.base_model_version
    return entries


def modelspec_entries(architecture: Architecture | None, title: str) -> dict[str, str]:
    """What the Stability model specification asks of a new file."""
    entries = {"modelspec.sai_model_spec": "1.0.1", "modelspec.title": title}
    if architecture is None or architecture.modelspec is None:
        return entries
    entries["modelspec.architecture"] = f"{architecture.modelspec}/lora"
    if architecture.name in _IMPLEMENTATIONS:
        implementation, resolution = _IMPLEMENTATIONS[architecture.name]
        entries["modelspec.implementation"] = implementation
        entries["modelspec.resolution"] = resolution
    return entries


def made_true(metadata: Mapping[str, str], result: Result, summary: str) -> dict[str, str]:
    """Return the ss_* entries of a result that its inputs' entries would say wrongly.

    An adapter that has no such entry gets some only in kohya's own format.

    Args:
        metadata: What is carried.
        result: What was written.
        summary: What was done, for the comment.
    """
    if result.format != "kohya" and not any(key.startswith("ss_") for key in metadata):
        return {}
    found = numbers(result.layers, result.alphas, result.sizes)
    network = model_entries(result.architecture)["ss_network_module"]
    entries = {
        "ss_network_dim": found.rank,
        "ss_network_alpha": found.alpha,
        "ss_output_name": result.title,
        "ss_network_module": network
        if result.converted
        else metadata.get("ss_network_module", network),
        **_arguments(metadata, found, () if not result.converted else _OF_KIND),
    }
    if summary:
        comment = metadata.get(COMMENT, "")
        before = "" if comment in ("", "None") else f"{comment}; "
        entries[COMMENT] = f"{before}{summary} with lorakit"
    return entries


def _arguments(
    metadata: Mapping[str, str], found: Numbers, untrue: Sequence[str]
) -> dict[str, str]:
    """The network's arguments with the ranks of convolutions that the file has."""
    read = from_json(metadata.get(ARGUMENTS, ""))
    arguments: dict[str, Any] = dict(read) if isinstance(read, dict) else {}
    kept = {
        key: value for key, value in arguments.items() if key not in (*_BY_BLOCK, *_CONV, *untrue)
    }
    told = any(key in arguments for key in _CONV)
    if found.conv is not None and (told or found.conv != (found.rank, found.alpha)):
        kept |= dict(zip(_CONV, found.conv, strict=True))
    return {ARGUMENTS: as_json(kept)} if kept != arguments else {}


def _number(alpha: float | None, rank: int) -> str:
    return f"{rank if alpha is None else alpha:.7g}"


def _one(values: set[str]) -> str:
    return next(iter(values)) if len(values) == 1 else _VARIOUS
