"""Giving a finished file its name: what must stay is never replaced, what may be is so as a whole."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path

from ...errors import ArgumentError, WriteError

_WAY_OUT = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EFBIG: "the file system or a limit takes no file so large; choose another place",
    errno.EACCES: "choose a place you may write to, and close programs that use the file",
    errno.EPERM: "choose a place you may write to",
    errno.EROFS: "choose a place that is not read-only",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "create the folder first",
}


# Where unfinished files lie; None: beside their outputs.
_FOLDER: ContextVar[Path | None] = ContextVar("_FOLDER", default=None)


@contextlib.contextmanager
def unfinished_in(folder: Path) -> Generator[None, None, None]:
    """Have unfinished files of this thread lie in a folder: what a killed process leaves goes with it.

    Args:
        folder: Outputs on another disk have theirs beside them nevertheless.
    """
    before = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(before)


def hidden(path: Path) -> Path:
    """A new name for what is to get this one once it is complete.

    It is new even where a killed process of the same number left its own behind.
    """
    token = f"{os.getpid()}.{secrets.token_hex(4)}"
    folder = _FOLDER.get()
    if folder is None or not _on_one_disk(folder, path.parent):
        folder = path.parent
    return folder / f".{path.name[:40]}.{token}.partial"


class Place:
    """The place of one output: hidden siblings to write into, one of which gets the name.

    A file that is replaced hands its mode on, and its owner where the system lets it; a symbolic
    link stays, and the file that it leads to is replaced.

    Args:
        path: The output.
        replace: Whether a file that is there may be replaced. If not, one that appears under the
            name until the very end is left alone.

    Raises:
        ArgumentError: the name is taken, or by something that is no regular file.
    """

    def __init__(self, path: Path, *, replace: bool) -> None:
        self.path = path
        with self.explained():
            check_name(path, replace=replace)
            self._file = Path(os.path.realpath(path)) if path.is_symlink() else path
        self._replace = replace
        self._temporaries: list[Path] = []
        self._published: os.stat_result | None = None

    def open(self) -> io.FileIO:
        """Open a new hidden sibling, for writing and reading.

        Raises:
            OSError: it cannot be made.
        """
        temporary = hidden(self._file)
        self._temporaries.append(temporary)
        file = io.FileIO(temporary, "x+")
        if self._replace:
            # At once: what only its owner may read is not shown to others on the way either.
            _inherit(file.fileno(), self._file)
        return file

    def adopt(self, file: Path) -> None:
        """Take a closed file for the next sibling; it lies on the same file system.

        Raises:
            OSError: it is not there.
        """
        self._temporaries.append(file)
        if self._replace:
            with file.open("rb") as opened:
                _inherit(opened.fileno(), self._file)

    def publish(self) -> None:
        """Give the sibling that was opened last, closed by now, the output's name.

        Raises:
            WriteError: a file appeared under the name that must not be replaced.
            OSError: the system refuses.
        """
        temporary = self._temporaries[-1]
        self._published = temporary.stat()
        if self._replace:
            check_name(self._file, replace=True)
            temporary.replace(self._file)
        else:
            try:
                _rename_to_free(temporary, self._file)
            except FileExistsError:
                raise WriteError(
                    "a file of this name appeared during the work and was left as it is; nothing "
                    "was written; choose another name",
                    path=self.path,
                ) from None
        sync_folder(self._file.parent)

    def withdraw(self) -> None:
        """Take a published file away again, where it replaced none and was not replaced since."""
        with contextlib.suppress(OSError):
            if (
                not self._replace
                and self._published is not None
                and os.path.samestat(self._published, self._file.stat())
            ):
                self._file.unlink()

    def clean(self) -> None:
        """Remove the hidden siblings that are left."""
        for temporary in self._temporaries:
            with contextlib.suppress(OSError):  # the last one has its name by now if all went well
                temporary.unlink()

    def explained(self) -> AbstractContextManager[None]:
        """Errors of the system become a `WriteError` with the output's name and a way out."""
        return explained(self.path)


@contextlib.contextmanager
def explained(path: Path) -> Generator[None, None, None]:
    """Errors of the system become a `WriteError` with an output's name and a way out."""
    try:
        yield
    except OSError as error:
        way_out = _WAY_OUT.get(error.errno or 0, "choose another place")
        raise WriteError(f"could not be written: {error.strerror}; {way_out}", path=path) from error


def publish_all(places: Sequence[Place]) -> None:
    """Give several files their names, in order; none of them where none may be replaced.

    Raises:
        WriteError: a file could not get its name, or must not replace another.
    """
    done: list[Place] = []
    try:
        for place in places:
            with place.explained():
                place.publish()
            done.append(place)
    except BaseException:
        for place in done:
            place.withdraw()
        raise


def move_all(files: Iterable[Path], folder: Path, *, replace: bool) -> None:
    """Move finished files into a folder, in order, under the names that they have.

    Args:
        files: On the folder's file system.
        folder: Where to.
        replace: See `Place`.

    Raises:
        ArgumentError: a name is taken.
        WriteError: a file could not be moved, or must not replace another.
    """
    places: list[Place] = []
    for file in files:
        places.append(Place(folder / file.name, replace=replace))
        places[-1].adopt(file)
    publish_all(places)


def check_name(path: Path, *, replace: bool) -> None:
    """Refuse a name that is taken.

    Args:
        path: The output.
        replace: Whether a regular file may be there; links are followed.

    Raises:
        ArgumentError: something is there that may not be replaced: a folder, pipe or device never.
        OSError: the system does not say.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and stat.S_ISDIR(mode):
        raise ArgumentError("is a folder; give a file name in it", path=path)
    # A link to nothing is still something under that name.
    if not replace and (mode is not None or path.is_symlink()):
        raise ArgumentError("exists already; choose another name or use `force=True`", path=path)
    if mode is not None and not stat.S_ISREG(mode):
        raise ArgumentError(
            "is no regular file, and would be replaced by one; choose another name", path=path
        )


def write_whole(path: Path, content: bytes, *, replace: bool) -> None:
    """Write a small file, whole under its name or not at all.

    Args:
        path: The output.
        content: All of it.
        replace: See `Place`.

    Raises:
        ArgumentError: see `Place`.
        WriteError: the file could not be written.
    """
    place = Place(path, replace=replace)
    try:
        with place.explained():
            with place.open() as file:
                write_all(file, memoryview(content))
                os.fsync(file.fileno())
            place.publish()
    finally:
        place.clean()


def write_all(file: io.FileIO, data: memoryview) -> None:
    """Write all of it: one call to the system may take a part only."""
    while data:
        data = data[file.write(data) :]


def _on_one_disk(one: Path, other: Path) -> bool:
    """Whether a file can be moved from one folder to another by its name alone."""
    try:
        return one.stat().st_dev == other.stat().st_dev
    except OSError:
        return False


def _rename_to_free(temporary: Path, path: Path) -> None:
    """Rename a file, unless something has the new name."""
    if os.name == "nt":
        temporary.rename(path)  # which refuses there
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # No hard links, as on FAT: an empty file takes the name first, which only one can make.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            temporary.replace(path)
        except BaseException:
            path.unlink()
            raise
    else:
        temporary.unlink()


def _inherit(handle: int, path: Path) -> None:
    """Give an open file the mode of the one that it will replace, and its owner if that is allowed."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # nothing is there, or the file system has no modes
        there = path.stat()
        for owner in (there.st_uid, -1):  # most may change the group alone
            with contextlib.suppress(OSError):
                os.fchown(handle, owner, there.st_gid)
                break
        mode = stat.S_IMODE(there.st_mode) & 0o777
        if os.fstat(handle).st_gid != there.st_gid:
            mode &= 0o707 | (mode & 0o007) << 3  # another group gets what everybody has
        os.fchmod(handle, mode)


def sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut, where folders can be synced (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
