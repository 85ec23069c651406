"""Where a checkpoint is written: one file, or shards and their index."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...files import INDEX, FileSource, PlacedShardsWriter, PlacedWriter, partition
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
) -> PlacedWriter | PlacedShardsWriter:
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
    if is_index(output):
        shards = [[rows[key] for key in part] for part in partition(checkpoint, dtypes, shard_size)]
        return PlacedShardsWriter(output, shards, metadata=metadata, hashed=False, replace=replace)
    return PlacedWriter(output, rows.values(), metadata=metadata, hashed=False, replace=replace)


def write_tensor(planned: Planned, file: PlacedWriter | PlacedShardsWriter) -> Outcome[Tensor]:
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
