"""Where a checkpoint is written: one file, or shards and their index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ...files import INDEX, FileSource, SafetensorsWriter, ShardsWriter, dtype_name, partition
from ...files.header import render_header

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
    rows = [
        # No offset has more digits than these will.
        (key, dtype_name(dtype), checkpoint.shape(key), 10**13)
        for key, dtype in dtypes.items()
    ]
    room = len(render_header(rows, metadata))
    if not is_index(output):
        return SafetensorsWriter(output, header_room=room, hashed=False, replace=replace)
    shards = partition(checkpoint, dtypes, shard_size)
    return ShardsWriter(output, shards, header_room=room, hashed=False, replace=replace)
