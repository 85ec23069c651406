"""Where a checkpoint is written: one file, or shards and their index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from ...files import (
    INDEX,
    FileSource,
    FolderWriter,
    JoinedSource,
    PlacedShardsWriter,
    PlacedWriter,
    beside_weights,
    check_folder,
    check_output,
    partition,
)
from ...report import counted
from ...run.job import Outcome
from ...source import TensorSource
from .tiles import Planned, compute

#: What has a place for every tensor of a checkpoint.
AnyWriter: TypeAlias = PlacedWriter | PlacedShardsWriter | FolderWriter

#: Bytes of data in a shard where the checkpoint has none of its own, as transformers writes them.
SHARD_SIZE = 5 * 10**9


def is_index(output: Path) -> bool:
    """Whether an output is the index of shards."""
    return output.name.lower().endswith(INDEX)


def is_folder(checkpoint: TensorSource) -> bool:
    """Whether a checkpoint is a folder of files, which the output then is too."""
    return isinstance(checkpoint, FileSource) and Path(checkpoint.name).is_dir()


def check_place(
    output: Path, checkpoint: FileSource, inputs: Sequence[Path], *, force: bool
) -> None:
    """Refuse a name under which the result could not, or must not, be written.

    Args:
        output: Where the result is to go.
        checkpoint: What it is made like.
        inputs: The files it is made from.
        force: Whether files may be replaced.

    Raises:
        ArgumentError: See `check_output`; a folder becomes a new folder.
    """
    if is_folder(checkpoint):
        check_folder(output, checkpoint)
    else:
        suffix = INDEX if is_index(output) else ".safetensors"
        check_output(output, inputs, force=force, suffix=suffix)


def folder_notes(checkpoint: TensorSource) -> Iterator[str]:
    """Say what of a folder is not in the new one."""
    if not isinstance(checkpoint, FileSource) or not is_folder(checkpoint):
        return
    _, left = beside_weights(checkpoint)
    if left:
        yield (
            f"{counted(len(left), 'file')} of other weights of the same components left out, the "
            f"first `{left[0]}`"
        )


def writer_for(
    output: Path,
    checkpoint: FileSource,
    dtypes: Mapping[str, torch.dtype],
    metadata: Mapping[str, str],
    *,
    shard_size: int,
    replace: bool,
) -> AnyWriter:
    """Return the writer for an output, with room for the header of what is planned.

    Args:
        output: Where to.
        checkpoint: Which has the keys and shapes, and maybe shards.
        dtypes: Of what is written, by key.
        metadata: As long as it can become.
        shard_size: Most bytes of data in a shard, where the checkpoint is no index itself.
        replace: Whether files that are there may be replaced.
    """
    rows = {key: (key, dtype, checkpoint.shape(key)) for key, dtype in dtypes.items()}
    if isinstance(checkpoint, JoinedSource) and is_folder(checkpoint):
        return FolderWriter(output, checkpoint, rows.values(), metadata=metadata)
    if is_index(output):
        shards = [[rows[key] for key in part] for part in partition(checkpoint, dtypes, shard_size)]
        return PlacedShardsWriter(output, shards, metadata=metadata, hashed=False, replace=replace)
    return PlacedWriter(output, rows.values(), metadata=metadata, hashed=False, replace=replace)


def write_tensor(planned: Planned, file: AnyWriter) -> Outcome[Tensor]:
    """Compute a tensor into its place in a file; or have the system copy it, where nothing changes.

    Args:
        planned: Which.
        file: In which it has a place.

    Returns:
        What is to be said of it; there is nothing left to write.
    """
    if planned.is_copy and isinstance(planned.source, FileSource):
        file.copy(planned.key, planned.source, planned.own)
        return Outcome(planned.key, None)
    return Outcome(planned.key, None, compute(planned, partial(file.write_at, planned.key)))
