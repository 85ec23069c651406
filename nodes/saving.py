"""From a file in memory to one on disk, under a name that is free and metadata that is true."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from . import host

if TYPE_CHECKING:
    from ..lora_ops.files import MemoryFile

DEFAULT_PREFIX = "loras/lorakit"
# What files are called in their own metadata.
_TITLES = ("ss_output_name", "modelspec.title")


def saved(file: MemoryFile, prefix: str) -> tuple[Path, str]:
    """Write an adapter into the output folder; return where it is, and what to say of it.

    Args:
        file: The adapter.
        prefix: Folder and beginning of the name.

    Raises:
        WriteError: The disk is full, or the like; nothing is left behind.
    """
    from ..lora_ops.files import save
    from ..lora_ops.formats import detect
    from ..lora_ops.metadata import HASH_KEYS
    from ..lora_ops.text import human_size

    scheme = detect(file.keys(), file.name)
    path = host.output_path(prefix, DEFAULT_PREFIX)
    metadata = titled(file.metadata, path.stem)
    written = save(path, file.tensors, metadata, hash_keys=HASH_KEYS, replace=False)
    told = f"{path.name}: {written.tensors} tensors, {human_size(written.size)}, format {scheme}"
    return path, told


def titled(metadata: Mapping[str, str], title: str) -> dict[str, str]:
    """The metadata with the file's own name, where it names the file at all."""
    return {key: title if key in _TITLES else text for key, text in metadata.items()}
