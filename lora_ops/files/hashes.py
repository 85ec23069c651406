"""SHA-256 of files, in chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import Event

from ..source import TensorSource
from .base import FileSource, open_binary, read_errors
from .digests import DATA_HASH
from .reading.safetensors_file import SafetensorsFile
from .remembered import remembered
from .writing.memory import MemoryFile

_CHUNK = 1 << 20  # bytes


def file_sha256(path: str | Path, stop: Event | None = None) -> str:
    """SHA-256 of a whole file, lower-case hex: what Civitai looks up (AutoV2 is its beginning).

    Args:
        path: The file.
        stop: Once it is set, by another thread, the rest is not read and the result is empty.

    Raises:
        ArgumentError: there is no such file, or it may not be read.
        FormatError: reading it fails in the middle.
    """
    return _sha256(Path(path), 0, stop)


def known_sha256(path: Path, stop: Event | None = None) -> str:
    """The same as `file_sha256`, remembered where the file is large."""
    return remembered(path, partial(file_sha256, path, stop))


def input_sha256(
    source: FileSource, stop: Event | None = None, known: Mapping[Path, str] | None = None
) -> str:
    """SHA-256 of an opened file; of a list of hashes and names where it is several files.

    Of a file in memory, that of the file it was read from, if it is still that. Those of large files
    are remembered.

    Args:
        source: The file or files.
        stop: Once it is set, by another thread, the rest is not read and the result is no hash.
        known: Hashes of files that need not be taken.

    Raises:
        ArgumentError: a file is gone, or may not be read.
        FormatError: reading it fails in the middle.
    """
    if isinstance(source, MemoryFile):
        return source.sha256
    digests = [(known or {}).get(path) or known_sha256(path, stop) for path in source.paths]
    if len(digests) == 1:
        return digests[0]
    pairs = zip(digests, source.paths, strict=True)
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in pairs)
    return hashlib.sha256(lines.encode()).hexdigest()


def recorded_hash(source: TensorSource) -> str:
    """What a file says the SHA-256 of its data is, lower-case hex; empty where it says nothing."""
    return source.metadata.get(DATA_HASH, "").strip().lower().removeprefix("0x")


def false_hash(source: FileSource, stop: Event | None = None) -> tuple[str, str] | None:
    """What a file says of its data, and the data's SHA-256, where they differ; reads all of it.

    Args:
        source: A safetensors file, with a configuration beside it or without. One that says nothing
            is never false, nor are several files.
        stop: Once it is set, by another thread, the rest is not read and the result is None.

    Raises:
        ArgumentError: the file is gone, or may not be read.
        FormatError: reading it fails in the middle.
    """
    told = recorded_hash(source)
    files = [path for path in source.paths if path.suffix.lower() in (".safetensors", ".sft")]
    if not told or len(files) != 1:
        return None
    # Its header is known to be sound.
    with open_binary(files[0]) as file, read_errors(files[0]):
        start = 8 + int.from_bytes(file.read(8), "little")
    true = remembered(files[0], partial(_sha256, files[0], start, stop), of="data")
    return (told, true) if true and true != told else None


def data_sha256(path: str | Path) -> str:
    """SHA-256 of a safetensors file's data, lower-case hex: kohya's `sshs_model_hash`.

    The first 12 digits are Civitai's AutoV3. Changing the metadata does not change it.

    Raises:
        ArgumentError: there is no such file, or it may not be read.
        FormatError: it is not a sound safetensors file.
    """
    with SafetensorsFile(path) as file:
        start = file.data_start
    return _sha256(Path(path), start)


def _sha256(path: Path, start: int, stop: Event | None = None) -> str:
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(_CHUNK))
    with open_binary(path) as file, read_errors(path):
        file.seek(start)
        while count := file.readinto(chunk):
            if stop is not None and stop.is_set():
                return ""
            digest.update(chunk[:count])
    return digest.hexdigest()
