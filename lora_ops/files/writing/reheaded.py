"""Writing a safetensors file again with other metadata: the header is new, the data is the same bytes."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..base import changed, open_binary, read_errors, stamp
from ..digests import digest_entries
from ..header import render_header
from ..reading.safetensors_file import SafetensorsFile
from .pieces import aligned, check_header, framed
from .publish import Place, write_all
from .writer import Written

_CHUNK = 1 << 22  # bytes


def rewrite(
    source: SafetensorsFile,
    output: Path,
    metadata: Mapping[str, str],
    *,
    hash_keys: Sequence[str] = (),
    replace: bool,
    progress: Callable[[int, int, str], None] | None = None,
) -> Written:
    """Write a file's data, byte for byte, under a header with other metadata.

    Args:
        source: The file; it is closed before the output gets its name, so that this may be its own.
        output: Where to.
        metadata: Strings by strings.
        hash_keys: Metadata keys that get the SHA-256 of the data section.
        replace: Whether a file that is there may be replaced; see `Place`.
        progress: Called with the bytes that are copied, all of them, and the output's name.

    Raises:
        ArgumentError: the name is taken.
        FormatError: the file changed since it was opened, or cannot be read; none is written.
        WriteError: the header is too long, or the file could not be written.
    """
    rows = [
        (key, source.dtype_name(key), source.shape(key), source.stored_size(key))
        for key in source.keys()  # noqa: SIM118 - not a mapping
    ]
    size = sum(row[3] for row in rows)

    def header(digest: str) -> bytes:
        return render_header(rows, {**metadata, **digest_entries(hash_keys, digest)})

    blank = header("0" * hashlib.sha256().digest_size * 2)
    check_header(blank, output)
    room = aligned(len(blank))
    (path,) = source.paths
    before = source.stamps.get(path) or stamp(path)
    place = Place(output, replace=replace)
    try:
        with place.explained(), place.open() as file:
            file.seek(8 + room)
            digest = hashlib.sha256()
            done = 0
            for part in _parts(path, source.data_start):
                digest.update(part)
                write_all(file, part)
                done += len(part)
                if progress is not None:
                    progress(done, size, output.name)
            file.seek(0)
            _finish(file, framed(header(digest.hexdigest()), room))
        source.close()
        if done != size or stamp(path) != before:
            raise changed(path)
        with place.explained():
            place.publish()
    finally:
        place.clean()
    return Written(output, 8 + room + size, digest.hexdigest(), len(rows))


def _parts(path: Path, start: int) -> Iterator[memoryview]:
    """The rest of a file, in one buffer."""
    memory = memoryview(bytearray(_CHUNK))
    with open_binary(path) as file:
        file.seek(start)
        while True:
            with read_errors(path):
                count = file.readinto(memory)
            if not count:
                return
            yield memory[:count]


def _finish(file: io.FileIO, head: bytes) -> None:
    write_all(file, memoryview(head))
    os.fsync(file.fileno())
