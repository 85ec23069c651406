"""What will be done to a file's metadata, from its header alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.formats import modules
from ...adapters.model import recognised_file
from ...errors import ArgumentError
from ...files import SafetensorsFile, check_output, is_folder, open_file
from ...models.architectures import Architecture
from ...source import TensorSource
from .edit import MetadataEdit, edit_metadata


@dataclass(frozen=True, slots=True)
class MetadataPlan:
    """What will be done; the file is closed again.

    Attributes:
        path: The file.
        metadata: Its string map as it is.
        edit: What becomes of that.
        stamp: By which a change of the file is seen; None where it cannot be.
    """

    path: Path
    metadata: Mapping[str, str]
    edit: MetadataEdit
    stamp: tuple[int, int, int] | None

    def to_dict(self) -> dict[str, Any]:
        """Return what becomes of the entries: what JSON can hold."""
        return {"name": str(self.path), **self.edit.to_dict()}


def plan_metadata_file(
    path: str | Path,
    changes: Mapping[str, str] | None = None,
    removals: Collection[str] = (),
    *,
    output: Path | None = None,
    force: bool = False,
) -> MetadataPlan:
    """Check everything that can be checked before the file is copied, and plan it.

    Args:
        path: A safetensors file: an adapter, a checkpoint, or one of anything else.
        changes: New values by name; see `edit_metadata`.
        removals: Names, or shell patterns, of entries to take away; see `edit_metadata`.
        output: Where the result is to go, `.safetensors`; None: nowhere yet.
        force: Whether the output may replace a file; then it may be the input itself.

    Raises:
        ArgumentError: There is no such file, or it is of another kind; the output cannot or must not be written;
            or see `edit_metadata`.
        FormatError: The file is damaged, or hostile.
    """
    if is_folder(Path(path)):
        raise ArgumentError(
            "is a folder; give the file in it whose metadata is to change", path=path
        )
    with open_file(path) as source:
        if not isinstance(source, SafetensorsFile):
            raise ArgumentError(
                "only a safetensors file has metadata that can be set; make one of it with `convert()`",
                path=path,
            )
        if output is not None:
            check_output(output, [] if force else source.paths, force=force)
        edit = edit_metadata(
            source.metadata,
            changes,
            removals,
            title=(output or Path(path)).stem,
            architecture=model_of(source),
        )
    return MetadataPlan(Path(path), source.metadata, edit, source.stamps[Path(path)])


def model_of(source: TensorSource) -> Architecture | None:
    """The model that an adapter is for; None where nothing tells, or where it is no adapter."""
    found = modules(source.keys())
    return recognised_file(source, found.modules).certain if found.is_adapter else None
