"""From a file in memory to one on disk, under a name that is free and metadata that is true."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..form.texts import loading_lines
from . import host, model_files
from .api import io

if TYPE_CHECKING:
    from ...lora_ops import MemoryFile

DEFAULT_PREFIX = "loras/lorakit"
_NAME, _TITLE = "ss_output_name", "modelspec.title"


def saved(file: MemoryFile, prefix: str) -> tuple[Path, list[str]]:
    """Write an adapter into the output folder; return where it is, and lines to say of it.

    Args:
        file: The adapter.
        prefix: Folder and beginning of the name.

    Raises:
        WriteError: The disk is full, or the like; nothing is left behind.
    """
    path = host.output_path(prefix, DEFAULT_PREFIX)
    return path, _written(file, path)


def _written(file: MemoryFile, path: Path) -> list[str]:
    from ...lora_ops import lint
    from ...lora_ops.adapters.formats import detect
    from ...lora_ops.adapters.metadata import HASH_KEYS
    from ...lora_ops.files import SPEC_HASH, save
    from ...lora_ops.operations.metadata.edit import LEGACY_HASH
    from ...lora_ops.text import human_size

    scheme = detect(file.keys(), file.name)
    metadata = titled(file, path.stem)
    metadata.pop(LEGACY_HASH, None)  # the name of the file goes into it
    specified = any(key.startswith("modelspec.") for key in metadata)
    hashes = (*HASH_KEYS, SPEC_HASH) if specified else HASH_KEYS
    written = save(path, file.tensors, metadata, hash_keys=hashes, replace=False)
    told = f"{path.name}: {written.tensors} tensors, {human_size(written.size)}, format {scheme}"
    return [told, *loading_lines(lint(file, headers_only=True).verdicts)]


def saved_once(file: MemoryFile, prefix: str) -> tuple[Path, list[str]]:
    """Write an adapter under a name of its content, unless it is there; return as `saved`.

    Args:
        file: The adapter.
        prefix: Folder and beginning of the name.

    Raises:
        WriteError: The disk is full, or the like; nothing is left behind.
    """
    path = host.output_path(prefix, DEFAULT_PREFIX, content=_digest(file)[:12])
    if path.is_file():
        return path, [f"{path.name}: there already"]
    return path, _written(file, path)


def _digest(file: MemoryFile) -> str:
    """A hash of names, numbers and metadata, hexadecimal."""
    told = hashlib.sha256(json.dumps(sorted(file.metadata.items())).encode())
    for key, tensor in sorted(file.tensors.items()):
        told.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        told.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return told.hexdigest()


def titled(file: MemoryFile, name: str) -> dict[str, str]:
    """The metadata with the file's new name, where it names the file; a title of its own stays.

    Args:
        file: Under its name until now.
        name: The new one, without suffix.
    """
    names = {_NAME: name} if own_title(file) else {_NAME: name, _TITLE: name}
    return {key: names.get(key, text) for key, text in file.metadata.items()}


def own_title(file: MemoryFile) -> str:
    """The title that somebody gave an adapter; empty where it is the name of a file."""
    title = file.metadata.get(_TITLE, "")
    return "" if title in (file.stem, file.metadata.get(_NAME)) else title


def with_title(file: MemoryFile, title: str) -> None:
    """Give an adapter back the title that it had before it was converted; empty: none of its own."""
    if title:
        file.metadata = {**file.metadata, _TITLE: title}


def graph_of(node: type[io.ComfyNode]) -> Mapping[str, str]:
    """What the host writes into files of the graph that makes them, unless it is told not to."""
    hidden = getattr(node, "hidden", None)
    if hidden is None or model_files.says_nothing():
        return {}
    told = {"prompt": json.dumps(hidden.prompt)} if hidden.prompt is not None else {}
    return told | {name: json.dumps(one) for name, one in (hidden.extra_pnginfo or {}).items()}
