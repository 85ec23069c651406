"""Metadata of a checkpoint that adapters were baked into, or taken out of again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...linalg.storage import spelled
from ...run.inputs import Input
from .common import Operation, Source, carried, history, record, sources_entry


def baked_metadata(
    checkpoint: Input,
    metadata: Mapping[str, str],
    sources: Sequence[Source],
    operation: Operation,
    *,
    dtype: torch.dtype | None,
    measured: Mapping[str, float],
) -> dict[str, str]:
    """Return the string map of a checkpoint with adapters in it, or out of it.

    What the checkpoint says of itself is carried, but for its hashes. What lorakit did to it before
    is in `lorakit.history`.

    Args:
        checkpoint: The input.
        metadata: Its string map.
        sources: The adapters, with their strengths.
        operation: bake or unbake.
        dtype: Of the changed weights; None: as they were.
        measured: Numbers of the report; each is written as `lorakit.<name>`.
    """
    found = carried(metadata)
    found |= {f"lorakit.{name}": f"{value:.6g}" for name, value in measured.items()}
    found |= record(operation, history(metadata))
    found |= sources_entry(sources, with_history=False)
    found["lorakit.checkpoint"] = checkpoint.name
    if checkpoint.sha256:
        found["lorakit.checkpoint_sha256"] = checkpoint.sha256
    if dtype is not None:
        found["lorakit.dtype"] = spelled(dtype)
    return found
