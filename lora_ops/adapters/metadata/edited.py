"""Metadata of an adapter made from another: resized, scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...linalg.storage import spelled
from ..formats import PEFT_CONFIG, PEFT_METADATA, with_unit_scales
from .common import Operation, Result, Source, carried, history, measured, record
from .kohya import made_true


def edited_metadata(source: Source, operation: Operation, result: Result) -> dict[str, str]:
    """Return the string map of an edited adapter; `HASH_KEYS` are left to the writer.

    All that the input says is carried, and what is no longer true is made true. `modelspec.date`
    stays: it dates the training, and lorakit writes no date of its own. What lorakit did to the
    input before is in `lorakit.history`.

    Args:
        source: The input.
        operation: What was done.
        result: What was written. A PEFT or diffusers file without alphas must hold the scales in
            its factors: its configuration is written to say so.
    """
    found = completed(carried(source.metadata), [source], operation, result)
    if any(key.startswith("modelspec.") for key in found):
        found["modelspec.title"] = result.title
    found |= record(operation, history(source.metadata))
    found["lorakit.input"] = source.file.name
    if source.file.sha256:
        found["lorakit.input_sha256"] = source.file.sha256
    return found


def completed(
    kept: Mapping[str, str], sources: Sequence[Source], operation: Operation, result: Result
) -> dict[str, str]:
    """Return what is kept of the inputs' entries, with those that only the result can give."""
    found = {key: value for key, value in kept.items() if key not in (PEFT_METADATA, PEFT_CONFIG)}
    if result.format in ("peft", "diffusers"):
        found |= with_unit_scales([source.metadata for source in sources], result.ranks)
    if result.format != "kohya":
        found["format"] = "pt"  # what the Hugging Face loaders ask for
    found |= made_true(found, result, operation.summary)
    found |= measured(result.report)
    found["lorakit.dtype"] = spelled(result.dtype)
    return found
