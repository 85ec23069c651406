"""Where a checkpoint is written: one file, or shards and their index."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from ...elements import Element
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
    partition,
    shard_paths,
)
from ...files.header import header_room
from ...files.writing.gguf_writer import GgufLayout, GgufWriter
from ...report import counted
from ...source import TensorSource
from .storing import Row
from .tiles import Planned

#: What has a place for every tensor of a checkpoint.
PlacedWriter: TypeAlias = SafetensorsWriter | ShardsWriter | FolderWriter | GgufWriter

#: Bytes of data in a shard where the checkpoint has none of its own, as transformers writes them.
SHARD_SIZE = 5 * 10**9
GGUF = ".gguf"


def is_index(output: Path) -> bool:
    """Whether an output is the index of shards."""
    return output.name.lower().endswith(INDEX)


def is_gguf(output: Path | None) -> bool:
    """Whether an output is a GGUF file."""
    return output is not None and output.name.lower().endswith(GGUF)


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
    if is_folder(checkpoint) and not is_gguf(output):
        check_folder(output, checkpoint)
    else:
        suffix = INDEX if is_index(output) else GGUF if is_gguf(output) else ".safetensors"
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
    tensors: Iterable[Planned],
    inputs: Sequence[Path],
    *,
    shard_size: int,
    force: bool,
) -> None:
    """Refuse names of shards under which nothing could, or must, be written; see `check_place`.

    Args:
        output: Where the result is to go; nothing is asked of what is no index.
        checkpoint: What it is made like.
        tensors: Of the result.
        inputs: The files it is made from.
        shard_size: Most bytes of data in a shard, where the checkpoint is no index itself.
        force: Whether files may be replaced.

    Raises:
        ArgumentError: See `check_output`.
    """
    if is_index(output) and not is_folder(checkpoint):
        for path in shard_paths(output, len(shards_of(checkpoint, tensors, shard_size))):
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


def stored_as(planned: Planned) -> str:
    """What people call the way in which a tensor is written."""
    return planned.storing.storage if planned.storing else planned.element.title


def is_copied(planned: Planned) -> bool:
    """Whether every byte of a tensor stays, also where it is stored with scales."""
    storing = planned.storing
    if storing is None or planned.steps:
        return planned.is_copy
    return storing.held(planned.source, planned.own) is not None


def storage_notes(checkpoint: TensorSource, tensors: Mapping[str, Planned]) -> Iterator[str]:
    """Say in what weights are written that are stored with scales.

    Args:
        checkpoint: What the result is made like.
        tensors: Of the result.
    """
    original = checkpoint.original if isinstance(checkpoint, QuantisedSource) else None
    found: Counter[tuple[str, Element]] = Counter()
    for key in checkpoint.keys():  # noqa: SIM118
        stored, one = checkpoint.storage(key), tensors.get(key)
        is_plain = stored == checkpoint.element(key).storage
        if one is None or one.source is original:  # what is copied as it is stored
            continue
        if one.storing is None and not is_plain:
            found[stored, one.element] += 1
    for (stored, element), count in found.items():
        yield f"{counted(count, 'weight')} stored as {stored} written as {element.storage}"


def rows_of(tensors: Iterable[Planned]) -> Iterator[Row]:
    """Key, numbers and shape of everything that is written.

    Args:
        tensors: Of the result, in its order.
    """
    for one in tensors:
        if one.storing is None:
            yield one.key, one.element, one.shape
        else:
            yield from one.storing.rows()


def data_size(rows: Iterable[Row]) -> int:
    """Bytes of the data of what is written, without headers."""
    return sum(math.prod(shape) * one.bits // 8 for _, one, shape in rows)


def writer_for(
    output: Path,
    checkpoint: FileSource,
    tensors: Sequence[Planned],
    metadata: Mapping[str, str],
    *,
    shard_size: int,
    replace: bool,
    layout: GgufLayout | None = None,
) -> PlacedWriter:
    """Return the writer for an output, with room for the header of what is planned.

    Args:
        output: Where to.
        checkpoint: What it is made like; it may have shards.
        tensors: What is written.
        metadata: As long as it can become.
        shard_size: Most bytes of data in a shard, where the checkpoint is no index itself.
        replace: Whether files that are there may be replaced.
        layout: Of a GGUF file.
    """
    rows = list(rows_of(tensors))
    if layout is not None:
        dtypes = {key: one.name for key, one, _ in rows}
        return GgufWriter(output, layout, dtypes, metadata, replace=replace)
    entries = [(key, one.name, shape) for key, one, shape in rows]
    room = header_room(entries, metadata)
    if isinstance(checkpoint, JoinedSource) and is_folder(checkpoint):
        writer = FolderWriter(output, checkpoint, header_room=room)
    elif is_index(output):
        shards = shards_of(checkpoint, tensors, shard_size)
        writer = ShardsWriter(output, shards, header_room=room, hashed=False, replace=replace)
    else:
        writer = SafetensorsWriter(output, header_room=room, hashed=False, replace=replace)
    writer.lay_out([(key, one.dtype, shape) for key, one, shape in rows])
    return writer


def shards_of(checkpoint: FileSource, tensors: Iterable[Planned], limit: int) -> list[list[str]]:
    """The keys of each shard: those of the checkpoint that are written, with what belongs to them.

    Args:
        checkpoint: What the result is made like.
        tensors: Of the result; what the checkpoint lacks goes into the last shard.
        limit: Most bytes of data in a shard, where the checkpoint has none of its own.
    """
    held, rows = set(checkpoint.keys()), {one.key: list(rows_of([one])) for one in tensors}
    sizes = {key: data_size(found) for key, found in rows.items() if key in held}
    shards = [[key for key in part if key in sizes] for part in partition(checkpoint, sizes, limit)]
    shards = [part for part in shards if part] or [[]]
    shards[-1].extend(key for key in rows if key not in held)
    return [[name for key in part for name, _, _ in rows[key]] for part in shards]
