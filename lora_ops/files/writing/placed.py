"""A file in which every tensor has its place, filled from any thread: whole under its name or not at all."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor

from ...errors import WriteError
from ..dtypes import DTYPE_BITS, memory_of, torch_dtypes
from ..positional import write_at
from .coverage import Coverage
from .pieces import Piece
from .publish import Place

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..base import FileSource


class PlacedFile:
    """What writers of all formats have in common; use one in a `with` statement.

    The data goes to a hidden sibling of the output, which is removed unless it is given its name.

    Args:
        path: The output.
        replace: Whether a file that is there may be replaced; see `Place`.

    Attributes:
        place: Of the output, within the `with` statement.

    Raises:
        ArgumentError: by `with`: the name is taken.
        WriteError: by `with`: the file could not be made.
    """

    place: Place

    def __init__(self, path: Path, *, replace: bool) -> None:
        self._path, self._replace = path, replace
        self._begin = 0  # of the data
        self._size = 0
        self._pieces: dict[str, Piece] = {}
        self._starts: dict[str, int] = {}
        self._filled = Coverage()
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        self.place = Place(self._path, replace=self._replace)
        try:
            with self.place.explained():
                self._file = self.place.open()
                self._file.seek(self._begin)
        except BaseException:  # Ctrl-C too: nobody else would clean up yet
            self.place.clean()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self.place.clean()

    def write_at(self, key: str, start: int, piece: Tensor) -> None:
        """Fill part of a place; from any thread, in any order.

        Args:
            key: Of the tensor.
            start: The first element, in C order.
            piece: Elements of the tensor's dtype; they may change afterwards.

        Raises:
            ValueError: they are of another dtype, or do not lie within the tensor.
            WriteError: the file could not be written.
        """
        whole, data, begin = self._pieces[key], memory_of(piece), start * piece.element_size()
        if torch_dtypes()[whole.dtype] != piece.dtype or not 0 <= begin <= whole.size - len(data):
            raise ValueError(
                f"`{key}` is {whole.dtype} {list(whole.shape)}: {piece.numel()} of {piece.dtype} "
                f"from {start} on have no place there"
            )
        begin += self._starts[key]
        with self.place.explained():
            write_at(self._file, data, self._begin + begin)
        self._fill(begin, len(data))

    def copy(self, key: str, source: FileSource, own: str) -> None:
        """Fill a place with the bytes of another file's tensor; from any thread.

        Args:
            key: Of the tensor.
            source: The other file.
            own: The tensor's key there; it has the same dtype and shape.

        Raises:
            FormatError: the other file cannot be read.
            WriteError: the file could not be written.
        """
        begin = self._starts[key]
        with self.place.explained():
            source.copy_into(own, self._file, self._begin + begin)
        self._fill(begin, self._pieces[key].size)

    def _fill(self, begin: int, size: int) -> None:
        with self._turn:
            self._filled.add(begin, begin + size)

    def _check_filled(self) -> None:
        reach = self._filled.reach
        for key, start in self._starts.items():
            piece = self._pieces[key]
            if start + piece.size > reach:
                number = (reach - start) * 8 // DTYPE_BITS[piece.dtype]
                raise WriteError(
                    f"not all of it was written: of `{key}` number {number} is the first missing",
                    path=self._path,
                )
