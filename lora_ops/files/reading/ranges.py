"""An open file that is read piece by piece, from several threads.

Not memory-mapped: what has been read would count as this process's memory until the system wants
it back, and an error of the disk, or a file that shrinks, would be a crash instead of an exception.
"""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

from ...errors import FormatError
from ..base import open_binary, read_errors
from ..positional import copy_at, read_at


class RangeReader:
    """Ranges of bytes of one file.

    Attributes:
        path: The file.
        size: Its length when it was opened, in bytes.

    Raises:
        ArgumentError: there is no such file, or it may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = threading.Lock()
        self._file = open_binary(path)
        try:
            with read_errors(path):
                self.size = os.fstat(self._file.fileno()).st_size
        except BaseException:
            self._file.close()
            raise

    def bytes(self, offset: int, size: int, what: str = "") -> bytes:
        """Read a range; see `into`. The size must not be the file's word alone."""
        text = bytearray(size)
        self.into(memoryview(text), offset, what)
        return bytes(text)

    def into(self, memory: memoryview, offset: int, what: str = "") -> None:
        """Fill memory from an offset on.

        Args:
            memory: Of bytes.
            offset: In bytes, from the start of the file.
            what: What is read, for messages: the key of a tensor in backticks.

        Raises:
            FormatError: the file ends within the range, or the disk fails.
        """
        # One call to the system reads 2 GiB at most; a lock and a seek work on every system.
        with self._turn, read_errors(self.path, what):
            self._file.seek(offset)
            while memory:
                count = self._file.readinto(memory)
                self._check(count, what)
                memory = memory[count:]

    def beside(self, memory: memoryview, offset: int, what: str = "") -> None:
        """Do what `into` does, while other threads read too, where the system knows how."""
        with read_errors(self.path, what):
            while memory:
                count = read_at(self._file, memory, offset)
                self._check(count, what)
                memory, offset = memory[count:], offset + count

    def copy(self, begin: int, size: int, file: io.FileIO, offset: int) -> bool:
        """Have the system copy a range into another file; see `copy_at`."""
        return copy_at(self._file, begin, size, file, offset)

    def _check(self, count: int, what: str) -> None:
        if not count:
            at = f", within {what}" if what else ""
            raise FormatError(f"the file became shorter while being read{at}", path=self.path)

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        self._file.close()
