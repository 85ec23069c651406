"""Metadata from file to file: a new header, the same bytes of data, complete under its name or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import SafetensorsFile, recorded_hash, rewrite
from ...run.workers import Progress
from .edit import MetadataEdit
from .plan import MetadataPlan


@dataclass(frozen=True, slots=True)
class MetadataReport:
    """What became of a file's metadata.

    Attributes:
        edit: What became of its entries, and what is worth a sentence.
        size: Bytes of the file that was written.
        data_sha256: SHA-256 of its data, lower-case hex: what its hashes say now.
        notes: What turned out when the data was read.
    """

    edit: MetadataEdit
    size: int
    data_sha256: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as lists, strings and numbers: what JSON can hold."""
        told = self.edit.to_dict()
        notes = [*told["notes"], *self.notes]
        return {**told, "notes": notes, "size": self.size, "data_sha256": self.data_sha256}


def edit_metadata_file(
    plan: MetadataPlan, output: Path, *, force: bool = False, progress: Progress | None = None
) -> MetadataReport:
    """Write a file with the metadata of a plan, and return what was done.

    The tensors are copied byte for byte, in their order, whatever they are stored as. The hashes of the data
    that the file has, `sshs_model_hash` and `modelspec.hash_sha256`, are true afterwards.

    Args:
        plan: From `plan_metadata_file`.
        output: A `.safetensors` file; with `force` also the input, which is replaced as a whole.
        force: Whether the output may replace a file.
        progress: Called after each part, with bytes.

    Raises:
        ArgumentError: The output exists.
        FormatError: The file changed since it was planned, or cannot be read; none is written.
        WriteError: The metadata is longer than loaders read, the disk is full, or the like; no file is written.
    """
    edit = plan.edit
    with SafetensorsFile(plan.path) as source:
        source.stamps = {plan.path: plan.stamp}
        told = recorded_hash(source)
        written = rewrite(
            source,
            output,
            edit.metadata,
            hash_keys=edit.hash_keys,
            replace=force,
            progress=progress,
        )
    false = told and told != written.data_sha256
    note = (
        f"the data was not what `sshs_model_hash` said ({told[:12]}…), but {written.data_sha256[:12]}…: the "
        "file was damaged, or changed by a program that kept the old hash"
    )
    return MetadataReport(edit, written.size, written.data_sha256, (note,) if false else ())
