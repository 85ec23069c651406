"""Writing a safetensors file in pieces, in any order, from several threads."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ...errors import WriteError
from ...source import TensorSource
from ..base import FileSource
from ..dtypes import TORCH_DTYPES, memory_of
from ..positional import PART, read_at, write_at
from .base import FileWriter, Piece, file_order, header_text, piece_of
from .coverage import Coverage

#: A tensor of the output: key, dtype and shape.
Row = tuple[str, torch.dtype, Sequence[int]]


class PlacedWriter(FileWriter):
    """A safetensors file of tensors that are known before; use it in a `with` statement.

    As they are known, so is where each number goes: threads write pieces, best of 1 to 2 MiB, in
    any order. The file is that of a `SafetensorsWriter` that gets these tensors in this order.

        rows = [(key, source.dtype(key), source.shape(key)) for key in source.keys()]
        with PlacedWriter(path, rows, metadata=blank) as writer:
            writer.write_at("weight", 0, piece)       # from here on by any thread
            writer.write_at("weight", piece.numel(), next_piece)
            writer.copy("bias", source)               # unchanged
            written = writer.finish(metadata)         # by one, once the others are done

    Each number is to be written once. Where the `with` statement is left early, writes of threads
    that go on end in a `ValueError`.

    Args:
        path: The output.
        rows: All tensors, in the order of their data; see `SafetensorsWriter` for those of odd sizes.
        metadata: About as long as that of `finish`, so that room is kept for it; where it is not,
            `finish` costs one copy of the file.
        hashed: Whether the data is hashed. It is as it comes, also out of order; see `FileWriter`.
        replace: Whether a file that is there may be replaced; see `Place`.

    Raises:
        ArgumentError: the format cannot hold a dtype or a name; by `with`: the name is taken.
        WriteError: by `with`, and by whatever writes: the file could not be written.
        ValueError: two tensors have one name.
    """

    def __init__(
        self,
        path: str | Path,
        rows: Iterable[Row],
        *,
        metadata: Mapping[str, str] | None = None,
        hashed: bool = True,
        replace: bool = True,
    ) -> None:
        self._pieces = file_order(piece_of(*row) for row in rows)
        super().__init__(path, len(header_text(self._pieces, metadata or {})), replace=replace)
        self._begins: dict[str, tuple[int, Piece]] = {}
        self._size = 0
        for piece in self._pieces:
            if piece.key in self._begins:
                raise ValueError(f"`{piece.key}` cannot be written a second time")
            self._begins[piece.key] = (self._size, piece)
            self._size += piece.size
        self._there = Coverage()
        self._lock = threading.Lock()  # of what is there, and of who writes
        self._writing = 0
        self._left = False
        self._hash = hashlib.sha256() if hashed else None
        self._hashed = 0  # bytes, from the start of the data
        self._hashing = threading.Lock()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A thread may be in the middle of a write, and the number of a closed file may be that of
        # another one at once: the last to write closes it.
        with self._lock:
            self._left = True
            idle = not self._writing
        if idle:
            self._let_go()

    def write(self, key: str, tensor: Tensor) -> None:
        """Write a whole tensor; see `write_at`."""
        self.write_at(key, 0, tensor)

    def write_at(self, key: str, start: int, numbers: Tensor) -> None:
        """Write a run of a tensor's numbers. Safe from several threads.

        Args:
            key: The tensor.
            start: Flat index, in C order, of the first number.
            numbers: Any shape, strides and device; of the tensor's dtype. They are free afterwards.

        Raises:
            KeyError: there is no such tensor.
            ValueError: they are of another dtype, do not lie within the tensor, or one was written
                before; or the `with` statement was left.
            WriteError: the file could not be written.
        """
        begin, piece = self._begins[key]
        data = memory_of(numbers)
        offset = start * numbers.element_size()
        if TORCH_DTYPES[piece.dtype] != numbers.dtype:
            raise ValueError(f"`{key}` is written as {piece.dtype}, not {numbers.dtype}")
        if not 0 <= offset <= offset + len(data) <= piece.size:
            raise ValueError(
                f"`{key}` of shape {list(piece.shape)} has no numbers {start} to "
                f"{start + numbers.numel()}"
            )
        with self._use():
            with self.place.explained():
                write_at(self._file, data, self._data_start + begin + offset)
            self._arrived(key, begin + offset, begin + offset + len(data), data)

    def copy(self, key: str, source: TensorSource, own: str | None = None) -> None:
        """Write a whole tensor as a source has it, by the system itself where it can.

        Safe from several threads.

        Args:
            key: The tensor.
            source: Of the same dtype and shape there.
            own: The source's name of it, if it is another.

        Raises:
            KeyError: there is no such tensor.
            ValueError: dtype or shape are others, or numbers of it were written before.
            FormatError: it could not be read.
            WriteError: the file could not be written.
        """
        own = key if own is None else own
        begin, piece = self._begins[key]
        if piece_of(key, source.dtype(own), source.shape(own)) != piece:
            raise ValueError(
                f"`{key}` is written as {piece.dtype} {list(piece.shape)}, which that of "
                f"{source.name} is not"
            )
        if not isinstance(source, FileSource):
            self.write(key, source.tensor(own))
            return
        with self._use():
            with self.place.explained():
                source.copy_into(own, self._file, self._data_start + begin)
            self._arrived(key, begin, begin + piece.size)

    def _settle(self) -> tuple[list[Piece], str]:
        reach = self._reach()
        for begin, piece in self._begins.values():
            if reach < begin + piece.size:
                width = TORCH_DTYPES[piece.dtype].itemsize
                raise WriteError(
                    f"not all of it was written: of `{piece.key}` number {(reach - begin) // width} "
                    "is the first that is missing",
                    path=self._path,
                )
        if self._hash is None:
            return self._pieces, ""
        with self._hashing:
            self._follow()
        return self._pieces, self._hash.hexdigest()

    @contextlib.contextmanager
    def _use(self) -> Generator[None, None, None]:
        """Keep the file open meanwhile."""
        with self._lock:
            if self._left:
                raise ValueError(f"{self._path} is not being written any more")
            self._writing += 1
        try:
            yield
        finally:
            with self._lock:
                self._writing -= 1
                last = self._left and not self._writing
            if last:
                self._let_go()

    def _arrived(self, key: str, begin: int, end: int, data: memoryview | None = None) -> None:
        with self._lock:
            if end > begin and not self._there.add(begin, end):
                raise ValueError(f"numbers of `{key}` cannot be written a second time")
        # Whoever comes first hashes all that is there; who comes meanwhile goes on writing.
        if self._hash is not None and self._hashing.acquire(blocking=False):
            try:
                if data is not None and begin == self._hashed:
                    self._hash.update(data)
                    self._hashed = end
                self._follow()
            finally:
                self._hashing.release()

    def _follow(self) -> None:
        """Hash what is there, up to the first gap: out of the system's cache, where it just went."""
        if self._hash is None or self._hashed == self._reach():
            return
        memory = memoryview(bytearray(PART))
        while part := memory[: self._reach() - self._hashed]:
            with self.place.explained():
                count = read_at(self._file, part, self._data_start + self._hashed)
            if not count:
                raise WriteError("became shorter while it was written", path=self._path)
            self._hash.update(part[:count])
            self._hashed += count

    def _reach(self) -> int:
        """The first byte of the data that is not there yet."""
        with self._lock:
            return self._there.reach
