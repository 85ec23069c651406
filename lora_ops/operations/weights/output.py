"""Where a checkpoint is written: one file, or shards and their index."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import ArgumentError
from ...files import (
    INDEX,
    FileSource,
    FolderWriter,
    JoinedSource,
    QuantisedSource,
    SafetensorsWriter,
    ShardsWriter,
    beside_weights,
    check_folder,
    check_output,
    dtype_name,
    partition,
    shard_paths,
)
from ...files.header import header_room
from ...report import LayerReport, Skip, counted
from ...run.inputs import Input, placeholders
from ...run.job import Outcome
from ...run.output import Sink
from ...source import TensorSource, storage_name
from .tiles import Planned, Put, compute

#: What has a place for every tensor of a checkpoint.
PlacedWriter: TypeAlias = SafetensorsWriter | ShardsWriter | FolderWriter

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
        if not output.suffix and not output.exists():
            raise ArgumentError(
                f"the output must end in `{suffix}`: a folder of diffusers is written where what is changed is "
                f"one, as its configurations and tokenizers are in no single file like {checkpoint.name}; give "
                "a folder, or have diffusers make one of the written file (`from_single_file`, then "
                "`save_pretrained`)",
                path=output,
            )
        check_output(output, inputs, force=force, suffix=suffix)


def check_shards(
    output: Path,
    checkpoint: FileSource,
    dtypes: Mapping[str, torch.dtype],
    inputs: Sequence[Path],
    *,
    shard_size: int,
    force: bool,
) -> None:
    """Refuse names of shards under which nothing could, or must, be written; see `check_place`.

    Args:
        output: Where the result is to go; nothing is asked of what is no index.
        checkpoint: What it is made like.
        dtypes: Of the result.
        inputs: The files it is made from.
        shard_size: Most bytes of data in a shard, where the checkpoint is no index itself.
        force: Whether files may be replaced.

    Raises:
        ArgumentError: See `check_output`.
    """
    if is_index(output) and not is_folder(checkpoint):
        for path in shard_paths(output, len(shards_of(checkpoint, dtypes, shard_size))):
            check_output(path, inputs, force=force)


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


def storage_notes(
    checkpoint: TensorSource, dtypes: Mapping[str, torch.dtype], storing: Container[str] = ()
) -> Iterator[str]:
    """Say in what weights are written that are stored with scales.

    Args:
        checkpoint: What the result is made like.
        dtypes: Of the result.
        storing: Keys of what is written with scales.
    """
    found: Counter[tuple[str, torch.dtype]] = Counter()
    for key in checkpoint.keys():  # noqa: SIM118
        stored = checkpoint.storage(key)
        is_number = key in dtypes and key not in storing
        if is_number and stored != storage_name(checkpoint.dtype(key)):
            found[stored, dtypes[key]] += 1
    for (stored, dtype), count in found.items():
        yield f"{counted(count, 'weight')} stored as {stored} written as {storage_name(dtype)}"


def rows_of(tensors: Iterable[Planned]) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Key, dtype and shape of everything that is written.

    Args:
        tensors: Of the result, in its order.
    """
    for one in tensors:
        if one.storing is None:
            yield one.key, one.dtype, one.shape
        else:
            yield one.key, one.dtype, one.storing.scheme.codes(one.shape)
            for key, part in one.storing.scheme.beside(one.storing.encoder()):
                yield key, part.dtype, tuple(part.shape)


def writer_for(
    output: Path,
    checkpoint: FileSource,
    rows: Sequence[tuple[str, torch.dtype, Sequence[int]]],
    metadata: Mapping[str, str],
    *,
    shard_size: int,
    replace: bool,
) -> PlacedWriter:
    """Return the writer for an output, with room for the header of what is planned.

    Args:
        output: Where to.
        checkpoint: What it is made like; it may have shards.
        rows: Key, dtype and shape of what is written.
        metadata: As long as it can become.
        shard_size: Most bytes of data in a shard, where the checkpoint is no index itself.
        replace: Whether files that are there may be replaced.
    """
    entries = [(key, dtype_name(dtype), tuple(shape)) for key, dtype, shape in rows]
    room = header_room(entries, metadata)
    if isinstance(checkpoint, JoinedSource) and is_folder(checkpoint):
        writer = FolderWriter(output, checkpoint, header_room=room)
    elif is_index(output):
        shards = shards_of(checkpoint, {key: dtype for key, dtype, _ in rows}, shard_size)
        writer = ShardsWriter(output, shards, header_room=room, hashed=False, replace=replace)
    else:
        writer = SafetensorsWriter(output, header_room=room, hashed=False, replace=replace)
    writer.lay_out(rows)
    return writer


def shards_of(
    checkpoint: FileSource, dtypes: Mapping[str, torch.dtype], limit: int
) -> list[list[str]]:
    """The keys of each shard: those of the checkpoint that are written; the last has those it lacks."""
    held = set(checkpoint.keys())
    own = {key: dtype for key, dtype in dtypes.items() if key in held}
    shards = [[key for key in part if key in own] for part in partition(checkpoint, own, limit)]
    shards = [part for part in shards if part] or [[]]
    shards[-1].extend(key for key in dtypes if key not in held)
    return shards


def write_tensor(
    planned: Planned,
    file: PlacedWriter,
    calculate: Callable[[Planned, Put], tuple[LayerReport | Skip, ...]] = compute,
) -> Outcome[Tensor]:
    """Compute a tensor into its place in a file; or have the system copy it, where nothing changes.

    Args:
        planned: Which.
        file: In which it has a place.
        calculate: How it is computed.

    Returns:
        What is to be said of it; there is nothing left to write.
    """
    if planned.is_copy and isinstance(planned.source, FileSource):
        file.copy(planned.key, planned.source, planned.own)
        return Outcome(planned.key, None)

    def put(start: int, piece: Tensor, /, beside: str = "") -> None:
        file.write_at(beside or planned.key, start, piece)

    if reports := _copy_stored(planned, file, put):
        return Outcome(planned.key, None, reports)
    return Outcome(planned.key, None, calculate(planned, put))


def _copy_stored(planned: Planned, file: PlacedWriter, put: Put) -> tuple[LayerReport, ...]:
    """Copy a weight that is to be stored as it is already, byte for byte.

    Returns:
        What is to be said of it; nothing where it cannot be copied.
    """
    source, storing = planned.source, planned.storing
    if storing is None or planned.steps or not isinstance(source, QuantisedSource):
        return ()
    held = storing.held(source, planned.own)
    if held is None:
        return ()
    file.copy(planned.key, source.original, held["weight"])
    encoder = storing.encoder()
    for key, part in storing.scheme.beside(encoder):
        own = held.get(key.rpartition(".")[2])
        put(0, part if own is None else source.original.tensor(own), beside=key)
    encoder.keep(source.tensor(planned.own))
    return (storing.report(encoder),)


class CheckpointFile(Sink[Tensor]):
    """A checkpoint whose tensors are written to their places by the jobs that compute them.

    Args:
        output: Where to.
        checkpoint: What it is made like; it may have shards.
        rows: Key, dtype and shape of what is written.
        shard_size: Most bytes of data in a shard, where the checkpoint is no index itself.
        force: Whether the output may replace files.

    Attributes:
        file: Once it is entered.
        reports: What was said of all tensors so far.
    """

    file: PlacedWriter

    def __init__(
        self,
        output: Path,
        checkpoint: FileSource,
        rows: Sequence[tuple[str, torch.dtype, Sequence[int]]],
        *,
        shard_size: int,
        force: bool,
    ) -> None:
        self._output, self._checkpoint, self._rows = output, checkpoint, rows
        self._shard_size, self._force = shard_size, force
        self.reports: list[LayerReport | Skip] = []

    @abstractmethod
    def longest(self, inputs: Sequence[Input]) -> Mapping[str, str]:
        """Return the string map at the greatest length that it can become.

        Args:
            inputs: The record of `sources`, with hashes in place of theirs; see `placeholders`.
        """

    def writer(self) -> PlacedWriter:
        """The file, or the files."""
        self.file = writer_for(
            self._output,
            self._checkpoint,
            self._rows,
            self.longest(placeholders(self.sources)),
            shard_size=self._shard_size,
            replace=self._force,
        )
        return self.file

    def tensors(self, outcome: Outcome[Tensor]) -> dict[str, Tensor]:
        """Nothing: each has been written when it is computed."""
        self.reports.extend(outcome.reports)
        return {}
