"""One operation on every adapter in a folder: a bad file does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import ArgumentError, LoraOpsError
from .files import FileSource, open_source
from .report import Report

Edit = Callable[[FileSource, Path], Report]


def check_folders(folder: Path, output: Path) -> list[Path]:
    """Return the adapter files under a folder, relative to it, in order.

    Raises:
        ArgumentError: There are none, or the output is no folder, or the same.
    """
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors"))
    if not files:
        raise ArgumentError("holds no .safetensors file", path=folder)
    if output.exists() and not output.is_dir():
        raise ArgumentError(f"is no folder, but `{folder}` is; give a folder", path=output)
    if output.exists() and output.samefile(folder):
        raise ArgumentError("is the input folder; choose another", path=output)
    return files


def edit_folder(
    folder: Path, output: Path, edit: Edit
) -> Iterator[tuple[Path, Report | LoraOpsError]]:
    """Yield what became of each adapter file under a folder, by its path relative to it.

    Args:
        folder: Searched with its subfolders.
        output: Made where it does not exist; files get the same places in it.
        edit: Given an opened file and where its result is to go.

    Raises:
        ArgumentError: As `check_folders`.
        LoraOpsError: A folder cannot be made.
    """
    for name in check_folders(folder, output):
        try:
            _make(output / name.parent)
            with open_source(folder / name) as source:
                yield name, edit(source, output / name)
        except LoraOpsError as error:
            yield name, error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"cannot be made: {error.strerror}", path=folder) from error
