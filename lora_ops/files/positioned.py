"""An open file that several threads read and write at places that they name."""

from __future__ import annotations

import io
import os
import threading


class Positioned:
    """A file whose reads and writes say where, so that they need not wait for each other.

    Where the system has no such calls, on Windows, they take turns.

    Args:
        file: Unbuffered; nobody else moves in it.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._turn = threading.Lock()

    def read(self, memory: memoryview, offset: int) -> int:
        """Fill memory from an offset on, as far as the system does at once; 0 at the file's end.

        Raises:
            OSError: the system could not.
        """
        if hasattr(os, "preadv"):
            return os.preadv(self.handle, [memory], offset)
        with self._turn:
            self._file.seek(offset)
            return self._file.readinto(memory)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of it, from an offset on.

        Raises:
            OSError: the system could not.
        """
        while data:
            if hasattr(os, "pwrite"):
                count = os.pwrite(self.handle, data, offset)
            else:
                with self._turn:
                    self._file.seek(offset)
                    count = self._file.write(data)
            data, offset = data[count:], offset + count

    @property
    def handle(self) -> int:
        """The system's number of the file.

        Raises:
            ValueError: it is closed.
        """
        return self._file.fileno()

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        self._file.close()
