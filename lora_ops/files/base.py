"""What every opened file has in common, and how a path becomes an open file."""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import stat
from abc import abstractmethod
from collections.abc import Generator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from ..errors import ArgumentError, FormatError
from ..source import TensorSource
from .dtypes import memory_of
from .positional import write_at

if TYPE_CHECKING:
    from typing_extensions import Self

#: By which a file is seen to have changed: inode, size and time of the last change, in ns.
Stamp = tuple[int, int, int]


# What the system says of names under which there is nothing for us.
_NOTHING_THERE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EINVAL, errno.EBADF),
}


class FileSource(TensorSource):
    """A `TensorSource` that reads files: close it, or use it in a `with` statement.

    It can be pickled: names, shapes and places travel, and the copy opens the files when it first
    reads. One that is not what it was by then is refused with a `FormatError`.

    Attributes:
        name: The path as the user gave it.
        metadata: The file's own string map; empty where it has none.
        paths: The files that are read.
        spelling: Whose names the file has, where its keys are not its own; see `RenamedSource`.
        stamps: How each file was when it was opened, as far as that is known.
    """

    name: str
    metadata: Mapping[str, str]
    paths: tuple[Path, ...]
    spelling: str | None = None
    stamps: Mapping[Path, Stamp | None] = MappingProxyType({})

    def copy_into(self, key: str, file: io.FileIO, offset: int) -> None:
        """Write the bytes of a tensor into an open file, as they are stored.

        Args:
            key: The tensor.
            file: Where to.
            offset: Of its first byte there.

        Raises:
            OSError: the other file could not be written.
        """
        write_at(file, memory_of(self.tensor(key)), offset)

    @abstractmethod
    def close(self) -> None:
        """Let go of the files. Closing twice is harmless."""

    def parts(self) -> list[list[str]]:
        """All tensor names, file by file."""
        return [list(self.keys())]

    def dtype_name(self, key: str) -> str:
        """Dtype of one tensor as a safetensors file names it: `BF16`, `F8_E4M3`, `F4`."""
        return self.element(key).name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def stamp(path: Path) -> Stamp | None:
    """What tells whether a file is still the same; None where it cannot be told."""
    try:
        return stamp_of(path.stat())
    except (OSError, ValueError):
        return None


def stamp_of(found: os.stat_result) -> Stamp:
    """The same of what the system says of a file."""
    return found.st_ino, found.st_size, found.st_mtime_ns


def changed(path: Path) -> FormatError:
    """The error for a file that is not what it was when it was opened."""
    return FormatError(
        "the file changed while it was read; do it again once nothing writes to it", path=path
    )


def is_folder(path: Path) -> bool:
    """Like `Path.is_dir`, but False for a name that the system refuses."""
    return stat.S_ISDIR(_mode(path))


def is_file(path: Path) -> bool:
    """Like `Path.is_file`, but False for a name that the system refuses."""
    return stat.S_ISREG(_mode(path))


def missing(path: Path) -> ArgumentError:
    """The error for a path at which there is nothing: it names the nearest that exists."""
    if not is_folder(path.parent):
        return ArgumentError(f"no such file: the folder `{path.parent}` does not exist", path=path)
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.name != path.name)
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return ArgumentError(f"no such file{hint}", path=path)


def open_binary(path: Path) -> io.FileIO:
    """Open a regular file for unbuffered reading.

    Raises:
        ArgumentError: nothing is there, it is no regular file, or it may not be read.
    """
    try:
        # A pipe would block for ever, a device has no size.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ArgumentError("not a regular file", path=path)
        return io.FileIO(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise missing(path) from None
    except OSError as error:
        raise ArgumentError(f"cannot be opened: {error.strerror}", path=path) from error


@contextlib.contextmanager
def read_errors(path: Path, what: str = "") -> Generator[None, None, None]:
    """Make a read that fails in the middle one of our errors: a disk that dies, a share that is gone.

    Args:
        path: The file or folder that is read.
        what: What of it, for the message.

    Raises:
        FormatError: the system could not read.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise FormatError(f"{what} cannot be read: {why}".lstrip(), path=path) from error


def quote(name: str) -> str:
    """A name out of a file, fit for one line of a message: short, printable, in backticks."""
    short = name if len(name) <= 100 else f"{name[:80]}…{name[-19:]}"
    if not short.isprintable():
        short = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)
    return f"`{short}`"


def _mode(path: Path) -> int:
    # Names come from strangers: too long, half a surrogate pair, in a folder closed to us. A disk
    # that fails does not say that there is nothing.
    with contextlib.suppress(ValueError), read_errors(path):
        try:
            return path.stat().st_mode
        except OSError as error:
            if error.errno not in _NOTHING_THERE:
                raise
    return 0
