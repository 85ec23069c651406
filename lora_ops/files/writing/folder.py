"""Writing a model as the folder that it was read from: each component to its file, the rest copied."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor

from ...errors import ArgumentError, WriteError
from ..base import FileSource, read_errors
from ..reading.joined import JoinedSource
from .base import Written
from .placed import PlacedWriter, Row
from .publish import explained, sync_folder
from .shards import INDEX, PlacedShardsWriter

if TYPE_CHECKING:
    from typing_extensions import Self

#: What files of weights end in, in any program's format.
_WEIGHTS = (
    *(".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data"),
    ".index.json",
)
_PICKLED = {"pytorch_model.bin": "model.safetensors"}


def check_folder(output: Path, source: FileSource) -> None:
    """Refuse a name under which a folder cannot be written.

    Args:
        output: Where the folder is to be.
        source: The folder that it is made from.

    Raises:
        ArgumentError: the source is a folder and the output the name of a file; something is there,
            also an empty folder's name taken by a file; it lies in the source, or its parent is missing.
    """
    folder = Path(source.name)
    if output.suffix.lower() in (".safetensors", ".json"):
        raise ArgumentError(
            "is a folder, whose parts keep to their own files; give the name of a new folder as "
            "output, or the file of the weights in it",
            path=source.name,
        )
    try:
        taken = output.is_symlink() or (output.exists() and not _is_empty_folder(output))
        if taken:
            raise ArgumentError("exists already; choose the name of a new folder", path=output)
        if not output.parent.is_dir():
            raise ArgumentError(f"the folder `{output.parent}` does not exist", path=output)
        if not os.access(output.parent, os.W_OK):
            raise ArgumentError(f"the folder `{output.parent}` may not be written to", path=output)
        if folder.resolve() in output.resolve().parents:
            raise ArgumentError("lies in the folder that it is made from", path=output)
    except OSError as error:
        raise ArgumentError(f"cannot be used: {error.strerror}", path=output) from error


def beside_weights(source: FileSource) -> tuple[list[Path], list[Path]]:
    """Sort what lies in a folder beside the weights that were opened.

    Returns:
        Files that belong to the model as it will be (configurations, tokenizers, components that are
        not opened), and other weights of the same components, which it would contradict; relative.

    Raises:
        FormatError: The folder cannot be listed.
    """
    folder = Path(source.name)
    opened = set(source.paths)
    parts = {path.parent for path in opened}
    kept: list[Path] = []
    left: list[Path] = []
    with read_errors(folder):
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if hidden or path in opened or not path.is_file():
                continue
            other = path.name.lower().endswith(_WEIGHTS) and path.parent in parts
            (left if other else kept).append(name)
    return kept, left


class FolderWriter:
    """A folder of weights, tensors at their places; use it in a `with` statement.

    All of it is a hidden sibling until `finish` gives it its name; without `finish` nothing stays.

    Args:
        output: The new folder.
        source: The opened folder that it is like.
        rows: All of its tensors, in order, by the names that the source has for them.
        metadata: About as long as that of `finish`, which each file gets.

    Raises:
        WriteError: by `with`, `write_at`, `copy` and `finish`: something could not be written.
    """

    def __init__(
        self,
        output: Path,
        source: JoinedSource,
        rows: Iterable[Row],
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._output, self._source = output, source
        token = f"{os.getpid()}.{secrets.token_hex(4)}"
        self._folder = output.with_name(f".{output.name[:40]}.{token}.partial")
        self._open = self._files = contextlib.ExitStack()
        self._paths: list[Path] = []
        self._writers: list[PlacedWriter | PlacedShardsWriter] = []
        self._part_of: dict[str, tuple[int, str]] = {}
        table = {row[0]: row for row in rows}
        for number, (member, keys) in enumerate(source.members()):
            path = self._folder / _name_of(Path(member.name), Path(source.name))
            names = {key: own for own, key in keys.items()}
            here = {names[key]: (names[key], *table[key][1:]) for key in table if key in names}
            if path.name.endswith(INDEX):
                shards = [[here[own] for own in part if own in here] for part in member.parts()]
                writer = PlacedShardsWriter(path, shards, metadata=metadata, hashed=False)
            else:
                writer = PlacedWriter(path, here.values(), metadata=metadata, hashed=False)
            self._paths.append(path)
            self._writers.append(writer)
            self._part_of |= {key: (number, own) for own, key in keys.items()}

    def __enter__(self) -> Self:
        with self._explained(), contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._files = stack.enter_context(contextlib.ExitStack())
            self._folder.mkdir()
            for path, writer in zip(self._paths, self._writers, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files.enter_context(writer)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def write(self, key: str, tensor: Tensor) -> None:
        """Fill the place of a whole tensor."""
        self.write_at(key, 0, tensor)

    def write_at(self, key: str, start: int, piece: Tensor) -> None:
        """Fill part of a place; see `PlacedWriter.write_at`."""
        number, own = self._part_of[key]
        with self._explained():
            self._writers[number].write_at(own, start, piece)

    def copy(self, key: str, source: FileSource, own: str) -> None:
        """Fill a place with another file's tensor; see `PlacedWriter.copy`."""
        number, here = self._part_of[key]
        with self._explained():
            self._writers[number].copy(here, source, own)

    def finish(
        self, metadata: Mapping[str, str] | None = None, *, hash_keys: Sequence[str] = ()
    ) -> Written:
        """Complete all files, copy what lies beside them, and give the folder its name.

        Args:
            metadata: Of every file of weights.
            hash_keys: Metadata keys that get the SHA-256 of a file's own data section.

        Returns:
            The folder, with the size of all files and no hash.

        Raises:
            WriteError: something could not be written, or has the name by now.
        """
        with self._explained():
            written = [writer.finish(metadata, hash_keys=hash_keys) for writer in self._writers]
            self._files.close()
            size = sum(one.size for one in written)
            for name in beside_weights(self._source)[0]:
                (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(self._source.name) / name, self._folder / name)
                size += (self._folder / name).stat().st_size
            if _is_empty_folder(self._output):
                self._output.rmdir()
            if os.path.lexists(self._output):
                raise WriteError(
                    "appeared during the work and was left as it is", path=self._output
                )
            self._folder.rename(self._output)
            sync_folder(self._output.parent)
        data = sum(one.data_size for one in written)
        return Written(self._output, size, "", sum(one.tensors for one in written), data)

    @contextlib.contextmanager
    def _explained(self) -> Generator[None, None, None]:
        """Errors name the folder, not one of its files."""
        try:
            with explained(self._output):
                yield
        except WriteError as error:
            error.path = self._output
            raise


def _name_of(file: Path, folder: Path) -> Path:
    """Where a file of weights lies in the new folder: under its name, with an ending that is read."""
    name = file.relative_to(folder)
    if name.suffix == ".json":  # `….safetensors.index.fp16.json` too
        return name.with_name(name.name.partition(".")[0] + INDEX)
    if name.suffix == ".safetensors":
        return name
    return name.with_name(_PICKLED.get(name.name, f"{name.stem}.safetensors"))


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and next(path.iterdir(), None) is None
