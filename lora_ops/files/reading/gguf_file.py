"""One GGUF file, read tensor by tensor: plain numbers as they are, blocks as bytes, row by row."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...elements import ELEMENTS, Element
from ...errors import FormatError
from ...source import check_run
from ..base import FileSource, quote
from ..dtypes import memory_of, torch_dtypes
from .gguf_header import BlockType, Value, read_gguf_header
from .gguf_names import own_name, turned_heads
from .ranges import RangeReader

#: Under which a file tells the shape of a tensor whose rows were no multiple of a block.
SHAPE = "comfy.gguf.orig_shape."
#: Fills a header up to where the data begins, and says nothing.
PADDING = "lorakit.padding"
_TOKENIZER = "tokenizer."


class GgufFile(FileSource):
    """A GGUF file as a `TensorSource`, by the names of the model's own program.

    What is stored in blocks has the dtype `torch.uint8`, and the shape (rows, bytes of a row): it is
    decoded by `QuantisedSource`.

    Raises:
        ArgumentError: there is no such file, or it may not be read.
        FormatError: the file is damaged, truncated or hostile.
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

    def type(self, key: str) -> BlockType:
        """How the numbers of a tensor are stored."""
        return self._entries[key].type

    def logical_shape(self, key: str) -> tuple[int, ...]:
        """Shape of the numbers of a tensor."""
        return self._shapes.get(key, self._entries[key].shape)

    def heads(self, key: str) -> int:
        """In how many heads its rows were turned; 0 if they were not."""
        return self._heads.get(key, 0)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor as `tensor` gives it."""
        entry = self._entries[key]
        if entry.type.name in ELEMENTS:
            return self.logical_shape(key)
        rows = math.prod(entry.shape[:-1])
        return rows, entry.size // rows if rows else 0

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor as `tensor` gives it."""
        return torch_dtypes()[self.element(key).name]

    def element(self, key: str) -> Element:
        """What the numbers of one tensor are; the bytes of blocks."""
        return ELEMENTS.get(self._entries[key].type.name, ELEMENTS["U8"])

    def result_element(self, key: str) -> Element:
        """The same: what is made of a tensor is stored as it is."""
        return self.element(key)

    def storage(self, key: str) -> str:
        """What people call its type."""
        own = self._entries[key].type.name
        return super().storage(key) if own in ELEMENTS else own

    def tensor(self, key: str) -> Tensor:
        """Read one tensor into fresh CPU memory.

        Raises:
            FormatError: the file has become shorter, or the disk fails.
        """
        out = torch.empty(self.shape(key), dtype=self.dtype(key))
        self.read_into(key, 0, out)
        return out

    def read_into(self, key: str, start: int, out: Tensor) -> None:
        """Fill a buffer with a run of a tensor's numbers, or bytes: one read of that range.

        Raises:
            FormatError: the file has become shorter, or the disk fails.
            ValueError: see `TensorSource.read_into`.
        """
        check_run(self, key, start, out)
        if out.numel():
            begin = self._entries[key].begin + start * out.element_size()
            self._file.into(memory_of(out), begin, quote(key))

    def has_ranges(self, key: str) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Close the file; names and shapes stay readable."""
        self._file.close()

    def stored(self, key: str) -> tuple[str, tuple[int, ...]]:
        """What a tensor is called in the file, and the shape that it has there."""
        return self._names[key], self._entries[key].shape

    def header_entries(self) -> dict[str, bytes]:
        """What the header says of the model, by name: each one's kind and value, as they are stored.

        Raises:
            FormatError: the file has become shorter, or the disk fails.
        """
        return {
            name: self._file.bytes(begin, size, "the header")
            for name, (begin, size) in self._spans.items()
        }

    def copy_into(self, key: str, file: io.FileIO, offset: int) -> None:
        """Write the bytes of a tensor into an open file; the system copies them where it can."""
        entry = self._entries[key]
        if not self._file.copy(entry.begin, entry.size, file, offset):
            super().copy_into(key, file, offset)

    def _read_header(self) -> None:
        found, values, self._spans = read_gguf_header(self._file)
        if not found:
            raise FormatError("a GGUF file without tensors", path=self._path)
        architecture = values.get("general.architecture")
        self._entries = {own_name(name, architecture): entry for name, entry in found.items()}
        if len(self._entries) != len(found):
            raise FormatError("two of its tensors have one name", path=self._path)
        self._names = dict(zip(self._entries, found, strict=True))
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._heads: dict[str, int] = {}
        for name, (key, entry) in zip(found, self._entries.items(), strict=True):
            told = values.get(SHAPE + name)
            if told is not None:
                self._shapes[key] = self._checked(key, told, entry.shape)
            if heads := turned_heads(key, architecture, values):
                self._heads[key] = heads
        self.metadata = _texts(values)

    def _checked(self, key: str, told: Value, stored: tuple[int, ...]) -> tuple[int, ...]:
        shape = (
            tuple(one for one in told if isinstance(one, int)) if isinstance(told, tuple) else ()
        )
        if not shape or min(shape) < 0 or math.prod(shape) != math.prod(stored):
            raise FormatError(
                f"the shape of {quote(key)} is told as {told}, but it holds {list(stored)}",
                path=self._path,
            )
        return shape


def _texts(values: Mapping[str, Value]) -> dict[str, str]:
    """What a file says of itself in words; its other entries are of tokenizers and numbers of layers."""
    words = {k: v for k, v in values.items() if isinstance(v, str) and k != PADDING}
    return {k: v for k, v in words.items() if not k.startswith(_TOKENIZER)}
