"""Writing a model as the folder that it was read from: each component to its file, the rest copied."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ...errors import ArgumentError, WriteError
from ..base import FileSource, read_errors
from ..quantised.source import QuantisedSource
from ..reading.joined import JoinedSource
from .publish import explained, hidden, sync_folder
from .shards import INDEX, ShardsWriter
from .writer import SafetensorsWriter, Written

if TYPE_CHECKING:
    from typing_extensions import Self

#: What files of weights end in, in any program's format.
_WEIGHTS = (
    *(".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data"),
    ".index.json",
)
_PICKLED = {"pytorch_model.bin": "model.safetensors"}
# What the configuration of a quantised component says of that.
_QUANTISER = {"quantization_config", "_pre_quantization_dtype"}


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
        header_room: Bytes to keep for the header of each file.

    Raises:
        WriteError: by `with`, `write_at`, `copy` and `finish`: something could not be written.
    """

    def __init__(self, output: Path, source: JoinedSource, *, header_room: int) -> None:
        self._output, self._source = output, source
        self._folder = hidden(output)
        self._open = self._files = contextlib.ExitStack()
        self._paths: list[Path] = []
        self._writers: list[SafetensorsWriter | ShardsWriter] = []
        self._part_of: dict[str, tuple[int, str]] = {}
        for number, (member, keys) in enumerate(source.members()):
            path = self._folder / _name_of(Path(member.name), Path(source.name))
            if path.name.endswith(INDEX):
                shards = [[own for own in part if own in keys] for part in member.parts()]
                writer = ShardsWriter(path, shards, header_room=header_room, hashed=False)
            else:
                writer = SafetensorsWriter(path, header_room=header_room, hashed=False)
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

    def lay_out(self, rows: Iterable[tuple[str, torch.dtype, Sequence[int]]]) -> None:
        """Give all tensors their places; see `SafetensorsWriter.lay_out`."""
        parts: list[list[tuple[str, torch.dtype, Sequence[int]]]] = [[] for _ in self._writers]
        for key, dtype, shape in rows:
            number, own = self._part_of[key]
            parts[number].append((own, dtype, shape))
        for writer, part in zip(self._writers, parts, strict=True):
            writer.lay_out(part)

    def write(self, key: str, tensor: Tensor) -> None:
        """Fill the place of a whole tensor."""
        self.write_at(key, 0, tensor)

    def write_at(self, key: str, start: int, piece: Tensor) -> None:
        """Fill part of a place; see `SafetensorsWriter.write_at`."""
        number, own = self._part_of[key]
        with self._explained():
            self._writers[number].write_at(own, start, piece)

    def copy(self, key: str, source: FileSource, own: str) -> None:
        """Fill a place with another file's tensor; see `SafetensorsWriter.copy`."""
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
            decoded = _decoded(self._source)
            for name in beside_weights(self._source)[0]:
                (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
                _copy(Path(self._source.name) / name, self._folder / name, name.parent in decoded)
                size += (self._folder / name).stat().st_size
            if _is_empty_folder(self._output):
                self._output.rmdir()
            if os.path.lexists(self._output):
                raise WriteError(
                    "appeared during the work and was left as it is", path=self._output
                )
            self._folder.rename(self._output)
            sync_folder(self._output.parent)
        return Written(self._output, size, "", sum(one.tensors for one in written))

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


def _decoded(source: JoinedSource) -> set[Path]:
    """The folders of components that were quantised, and are not in what is written."""
    return {
        Path(member.name).relative_to(source.name).parent
        for member, _ in source.members()
        if isinstance(member, QuantisedSource)
    }


def _copy(file: Path, to: Path, decoded: bool) -> None:
    """Copy a file; without the name of a quantiser if it is the configuration of what was decoded."""
    shutil.copyfile(file, to)
    if not decoded or file.name != "config.json":
        return
    with contextlib.suppress(ValueError, RecursionError):  # no JSON: nobody reads a quantiser in it
        config: object = json.loads(to.read_text("utf-8"))
        if isinstance(config, dict) and _QUANTISER & cast("dict[str, object]", config).keys():
            kept = {
                k: v for k, v in cast("dict[str, object]", config).items() if k not in _QUANTISER
            }
            to.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and next(path.iterdir(), None) is None
