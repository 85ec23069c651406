"""An open file that is read piece by piece, from several threads.

Not memory-mapped: what has been read would count as this process's memory until the system wants
it back, and an error of the disk, or a file that shrinks, would be a crash instead of an exception.
"""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

from ...errors import FormatError
from ..base import Stamp, changed, open_binary, read_errors, stamp, stamp_of
from ..positional import copy_at, read_at


class RangeReader:
    """Ranges of bytes of one file.

    Pickled, it travels by its path: the copy opens the file when it first reads.

    Attributes:
        path: The file.
        size: Its length when it was opened, in bytes.

    Raises:
        ArgumentError: there is no such file, or it may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = path.absolute()  # another process may stand in another folder
        self._turn = threading.Lock()
        self._file: io.FileIO | None = open_binary(path)
        try:
            with read_errors(path):
                self._stamp: Stamp = stamp_of(os.fstat(self._file.fileno()))
        except BaseException:
            self._file.close()
            raise
        self.size = self._stamp[1]

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
            FormatError: the file ends within the range, the disk fails, or, where this is a copy
                out of another process, it is not what it was there.
        """
        file = self._opened()
        with read_errors(self.path, what):
            while memory:  # one call to the system reads 2 GiB at most
                count = read_at(file, memory, offset)
                if not count:
                    at = f", within {what}" if what else ""
                    raise FormatError(
                        f"the file became shorter while being read{at}", path=self.path
                    )
                memory, offset = memory[count:], offset + count

    def copy(self, begin: int, size: int, file: io.FileIO, offset: int) -> bool:
        """Have the system copy a range into another file; see `copy_at`."""
        return copy_at(self._opened(), begin, size, file, offset)

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        if self._file is not None:
            self._file.close()

    def _opened(self) -> io.FileIO:
        if self._file is not None:
            return self._file
        with self._turn:
            if self._file is None:
                if stamp(self._place) != self._stamp:
                    raise changed(self.path)
                self._file = open_binary(self._place)
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_turn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._turn = threading.Lock()
