"""One file of tensors, whichever kind it is."""

from __future__ import annotations

from pathlib import Path

from ..base import FileSource, open_binary, read_errors, stamp
from .gguf_file import GgufFile
from .magic import HEAD, identify
from .pickled import PickledFile
from .safetensors_file import SafetensorsFile

_SAFETENSORS = {".safetensors", ".sft"}


def open_file(path: str | Path) -> FileSource:
    """Open a file of tensors: by its content, unless it ends like a safetensors file.

    Raises:
        ArgumentError: there is no such file, or it may not be read.
        FormatError: it is damaged, or of no kind that is read here.
    """
    before = stamp(Path(path))
    source = _opened(path)
    source.stamps = {Path(path): before}
    return source


def _opened(path: str | Path) -> FileSource:
    if Path(path).suffix.lower() in _SAFETENSORS:
        return SafetensorsFile(path)
    with open_binary(Path(path)) as file, read_errors(Path(path)):
        head = file.read(HEAD)
    kind = identify(head)
    if head.startswith(b"GGUF"):
        return GgufFile(path)
    return PickledFile(path) if kind is not None and kind.pickled else SafetensorsFile(path)
