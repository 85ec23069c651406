"""Reading, writing and copying at a place in an open file, from several threads at once."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading

#: Bytes at once: what the system takes fastest, and what stays in the cache of a core.
PART = 1 << 20

# Where a file has one place for all threads, as on Windows, they take turns.
_TURN = threading.Lock()
# What the system says where it does not copy between such files.
_NO_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


def read_at(file: io.FileIO, memory: memoryview, offset: int) -> int:
    """Read what one call gives, at most all of the memory; 0 at the end of the file.

    Raises:
        OSError: the system could not read.
    """
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [memory], offset)
    with _TURN:
        file.seek(offset)
        return file.readinto(memory)


def write_at(file: io.FileIO, data: memoryview, offset: int) -> None:
    """Write all of it.

    Raises:
        OSError: the system could not write.
    """
    while data:
        part = data[:PART]
        if hasattr(os, "pwrite"):
            count = os.pwrite(file.fileno(), part, offset)
        else:
            with _TURN:
                file.seek(offset)
                count = file.write(part)
        data, offset = data[count:], offset + count


def copy_at(source: io.FileIO, begin: int, size: int, file: io.FileIO, offset: int) -> bool:
    """Have the system copy bytes from file to file; it may share them, on disks that can.

    Returns:
        Whether it did: where it cannot, or the source ends before, nothing is to be relied on.
    """
    if not hasattr(os, "copy_file_range"):
        return False
    with contextlib.suppress(OSError):
        while size:
            # More than this in one call could not be interrupted.
            most = min(size, PART << 6)
            count = os.copy_file_range(source.fileno(), file.fileno(), most, begin, offset)
            if not count:
                return False
            begin, offset, size = begin + count, offset + count, size - count
        return True
    return False
