"""One safetensors file, read tensor by tensor."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from ...elements import ELEMENTS, Element
from ...errors import FormatError, QuantisedError
from ...source import check_run
from ..base import FileSource, quote
from ..dtypes import memory_of, torch_dtypes
from ..header import MAX_HEADER, Entry, parse_header
from ..positional import PART, write_at
from .magic import HEAD, identify
from .ranges import RangeReader

# Of numbers that Python reads: the name in the header, and that of `struct`.
_FORMS = {
    "F64": "d",
    "F32": "f",
    "F16": "e",
    "BF16": "f",
    "I64": "q",
    "I32": "i",
    "I16": "h",
    "I8": "b",
    "U8": "B",
}


class SafetensorsFile(FileSource):
    """A safetensors file as a `TensorSource`: the header now, each tensor when asked for.

    Holds one open file and the header. Threads may read at the same time.

    Raises:
        ArgumentError: there is no such file, or it may not be read.
        FormatError: the file is damaged, truncated, hostile or of another kind.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.name = str(path)
        self.paths = (self._path,)
        self._file = RangeReader(self._path)
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def keys(self) -> list[str]:
        """All tensor names, in the order of their data."""
        return list(self._entries)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor, from the header."""
        return self._entries[key].shape

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor as stored; `torch.uint8` for elements that torch does not have."""
        return torch_dtypes().get(self._entries[key].dtype, torch.uint8)

    def element(self, key: str) -> Element:
        """What the numbers of one tensor are, as the header names it."""
        return ELEMENTS[self._entries[key].dtype]

    def result_element(self, key: str) -> Element:
        """The same: what is made of a tensor is stored as it is."""
        return self.element(key)

    def stored_size(self, key: str) -> int:
        """Bytes of its data."""
        return self._entries[key].size

    def tensor(self, key: str) -> Tensor:
        """Read one tensor into fresh CPU memory, in its stored dtype.

        Raises:
            FormatError: the file has become shorter, or the disk fails.
            QuantisedError: the elements are narrower than a byte, or unknown to this torch.
        """
        out = torch.empty(self.shape(key), dtype=torch_dtypes()[self._readable(key).dtype])
        self.read_into(key, 0, out)
        return out

    def numbers(self, key: str) -> list[float]:
        """Read a tensor of a few numbers, without torch where they are plain ones."""
        entry = self._entries[key]
        form = _FORMS.get(entry.dtype)
        if form is None:
            return super().numbers(key)
        data = self._file.bytes(self.data_start + entry.begin, entry.size, quote(key))
        if entry.dtype == "BF16":  # the upper half of a float32
            data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
        return list(struct.unpack(f"<{math.prod(entry.shape)}{form}", data))

    def read_into(self, key: str, start: int, out: Tensor) -> None:
        """Fill a buffer with a run of a tensor's numbers: one read of that range.

        Raises:
            FormatError: the file has become shorter, or the disk fails.
            QuantisedError: the elements are narrower than a byte, or unknown to this torch.
            ValueError: see `TensorSource.read_into`.
        """
        entry = self._readable(key)
        check_run(self, key, start, out)
        if out.numel():
            offset = self.data_start + entry.begin + start * out.element_size()
            self._file.into(memory_of(out), offset, quote(key))

    def has_ranges(self, key: str) -> bool:
        """Always."""
        return True

    def copy_into(self, key: str, file: io.FileIO, offset: int) -> None:
        """Write the bytes of a tensor into an open file; see `FileSource.copy_into`."""
        entry = self._entries[key]
        begin = self.data_start + entry.begin
        if self._file.copy(begin, entry.size, file, offset):
            return
        memory = memoryview(bytearray(min(PART, entry.size)))
        for at in range(0, entry.size, PART):
            part = memory[: min(PART, entry.size - at)]
            self._file.into(part, begin + at, quote(key))
            write_at(file, part, offset + at)

    def _readable(self, key: str) -> Entry:
        entry = self._entries[key]
        if entry.dtype not in torch_dtypes():
            raise QuantisedError(
                f"{quote(key)} is stored as {entry.dtype}, which torch {torch.__version__} cannot "
                "hold; give the unquantised (fp16/bf16/fp32) checkpoint",
                path=self._path,
            )
        return entry

    def close(self) -> None:
        """Close the file; names and shapes stay readable."""
        self._file.close()

    def _read_header(self) -> None:
        size = self._file.size
        head = self._file.bytes(0, min(size, HEAD), "the header")
        length = int.from_bytes(head[:8], "little")
        # The shortest header is `{}`.
        if not 2 <= length <= min(size - 8, MAX_HEADER) or head[8:9] != b"{":
            raise self._not_safetensors(head, size, length)
        try:
            self._entries, self.metadata = parse_header(self._file.bytes(8, length, "the header"))
        except ValueError as error:
            raise FormatError(f"the header is damaged: {error}", path=self._path) from error
        #: Where the data begins in the file, in bytes.
        self.data_start = 8 + length
        expected = self.data_start + max((e.end for e in self._entries.values()), default=0)
        if size < expected:
            raise FormatError(
                f"the file is truncated: {size} of {expected} bytes; download or copy it again",
                path=self._path,
            )
        if size > expected:
            raise FormatError(
                f"{size - expected} bytes after the data belong to no tensor", path=self._path
            )

    def _not_safetensors(self, head: bytes, size: int, length: int) -> FormatError:
        kind = identify(head)
        if size == 0:
            message = "the file is empty"
        elif head[8:9] == b"{" and 2 <= length <= MAX_HEADER:
            message = (
                f"the file is truncated inside its header: {size} of at least {8 + length} bytes; "
                "download or copy it again"
            )
        elif kind is not None:
            return kind.error(f"not a safetensors file: {kind.sentence}", path=self._path)
        elif size < 8:
            message = f"not a safetensors file: only {size} bytes long"
        else:
            message = "not a safetensors file: it does not begin with the length of a JSON header"
        return FormatError(message, path=self._path)
