"""SHA-256 of files, in chunks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Event

from .base import FileSource, open_binary, reading
from .memory import MemoryFile
from .safetensors_file import SafetensorsFile

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


def input_sha256(source: FileSource, stop: Event | None = None) -> str:
    """SHA-256 of an opened file; of a list of hashes and names where it is several files.

    Of a file in memory, that of the file it was read from, if it is still that.

    Args:
        source: The file or files.
        stop: Once it is set, by another thread, the rest is not read and the result is no hash.

    Raises:
        ArgumentError: a file is gone, or may not be read.
        FormatError: reading it fails in the middle.
    """
    if isinstance(source, MemoryFile):
        return source.sha256
    digests = [file_sha256(path, stop) for path in source.paths]
    if len(digests) == 1:
        return digests[0]
    pairs = zip(digests, source.paths, strict=True)
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in pairs)
    return hashlib.sha256(lines.encode()).hexdigest()


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
    with open_binary(path) as file, reading(path):
        file.seek(start)
        while count := file.readinto(chunk):
            if stop is not None and stop.is_set():
                return ""
            digest.update(chunk[:count])
    return digest.hexdigest()
