"""Where a checkpoint is written: one file, or shards and their index."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...files import INDEX, FileSource, SafetensorsWriter, ShardsWriter, dtype_name, partition
from ...files.header import header_room
from ...run.job import Outcome
from .tiles import Planned, compute

#: Bytes of data in a shard where the checkpoint has none of its own, as transformers writes them.
SHARD_SIZE = 5 * 10**9


def is_index(output: Path) -> bool:
    """Whether an output is the index of shards."""
    return output.name.lower().endswith(INDEX)


def writer_for(
    output: Path,
    checkpoint: FileSource,
    dtypes: Mapping[str, torch.dtype],
    metadata: Mapping[str, str],
    *,
    shard_size: int,
    replace: bool,
) -> SafetensorsWriter | ShardsWriter:
    """Return the writer for an output, with room for the header of what is planned.

    Args:
        output: Where to.
        checkpoint: Which has the keys and shapes, and maybe shards.
        dtypes: Of what is written, by key.
        metadata: As long as it can become.
        shard_size: Most bytes of data in a shard, where the checkpoint is no index itself.
        replace: Whether files that are there may be replaced.
    """
    rows = [(key, dtype_name(dtype), checkpoint.shape(key)) for key, dtype in dtypes.items()]
    room = header_room(rows, metadata)
    if is_index(output):
        shards = partition(checkpoint, dtypes, shard_size)
        writer = ShardsWriter(output, shards, header_room=room, hashed=False, replace=replace)
    else:
        writer = SafetensorsWriter(output, header_room=room, hashed=False, replace=replace)
    writer.lay_out((key, dtype, checkpoint.shape(key)) for key, dtype in dtypes.items())
    return writer


def write_tensor(planned: Planned, file: SafetensorsWriter | ShardsWriter) -> Outcome[Tensor]:
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
