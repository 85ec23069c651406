"""An open file that is read piece by piece, from several threads.

Not memory-mapped: what has been read would count as this process's memory until the system wants
it back, and an error of the disk, or a file that shrinks, would be a crash instead of an exception.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

from ...errors import FormatError
from ..base import Stamp, changed, open_binary, read_errors, stamp, stamp_of
from ..positioned import Positioned

_COPIED = 1 << 24  # bytes in one call: a Ctrl-C waits for its end


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
        self._file: Positioned | None = Positioned(open_binary(path))
        try:
            with read_errors(path):
                self._stamp: Stamp = stamp_of(os.fstat(self._file.handle))
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
                count = file.read(memory, offset)
                if not count:
                    at = f", within {what}" if what else ""
                    raise FormatError(
                        f"the file became shorter while being read{at}", path=self.path
                    )
                memory, offset = memory[count:], offset + count

    def copy(self, begin: int, size: int, handle: int, offset: int) -> int:
        """Have the system copy a range into another file; how many bytes it did, from the first."""
        done = 0
        if hasattr(os, "copy_file_range"):  # on Linux
            file = self._opened()
            # It refuses other file systems, or has another reason: whoever goes on will see it.
            with contextlib.suppress(OSError):
                while done < size:
                    step = min(size - done, _COPIED)
                    count = os.copy_file_range(
                        file.handle, handle, step, begin + done, offset + done
                    )
                    if not count:
                        break
                    done += count
        return done

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        if self._file is not None:
            self._file.close()

    def _opened(self) -> Positioned:
        if self._file is not None:
            return self._file
        with self._turn:
            if self._file is None:
                if stamp(self._place) != self._stamp:
                    raise changed(self.path)
                self._file = Positioned(open_binary(self._place))
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_turn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._turn = threading.Lock()
