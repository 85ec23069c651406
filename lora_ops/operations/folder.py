"""One operation on every adapter in a folder: a bad file does not stop the rest."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import ArgumentError, LoraOpsError
from ..files import FileSource, is_peft_folder, make_folder, open_source, read_errors
from ..report import Report
from .peft_folder import WEIGHTS
from .preview import Preview

Edit = Callable[[FileSource, Path], Report]


def check_folders(folder: Path, output: Path) -> list[Path]:
    """Return the adapters under a folder, relative to it, in order: files, and PEFT's folders.

    Files under the output are left out, as it may lie inside the folder.

    Raises:
        ArgumentError: There are no adapters, or the output is no folder, or the same folder.
        FormatError: The folder cannot be listed.
    """
    if output.exists() and not output.is_dir():
        raise ArgumentError(f"is no folder, but `{folder}` is; give a folder", path=output)
    if output.exists() and output.samefile(folder):
        raise ArgumentError("is the input folder; choose another", path=output)
    with read_errors(folder):
        found = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    made = output.resolve()
    if folder.resolve() in made.parents:
        found = [path for path in found if made not in path.resolve().parents]
    whole = {path.parent if _is_of_peft(path) else path for path in found}
    files = sorted(path.relative_to(folder) for path in whole)
    if not files:
        raise ArgumentError("holds no .safetensors file", path=folder)
    return files


def edit_folder(
    folder: Path, output: Path, edit: Edit
) -> Iterator[tuple[Path, Report | LoraOpsError]]:
    """Yield what became of each adapter under a folder, by its path relative to it.

    Args:
        folder: Searched with its subfolders.
        output: Made where it does not exist; files get the same places in it.
        edit: Given an opened file, or folder of PEFT, and where its result is to go.

    Raises:
        ArgumentError: As `check_folders`.
    """
    for name in check_folders(folder, output):
        yield name, _edited(folder / name, output / name, edit)


def preview_folder(
    folder: Path, output: Path, preview: Callable[[FileSource, Path], Preview]
) -> Iterator[tuple[Path, Preview | LoraOpsError]]:
    """Yield what would become of each adapter under a folder, by its path relative to it.

    Args:
        folder: Searched with its subfolders.
        output: Not made.
        preview: Given an opened file, or folder of PEFT, and where its result is to go.

    Raises:
        ArgumentError: As `check_folders`.
    """
    for name in check_folders(folder, output):
        yield name, _previewed(folder / name, output / name, preview)


def _previewed(
    file: Path, output: Path, preview: Callable[[FileSource, Path], Preview]
) -> Preview | LoraOpsError:
    there = output
    if not output.parent.exists():
        # Its folder will be made; a free name in the nearest one that there is stands for it.
        nearest = next(parent for parent in output.parents if parent.is_dir())
        there = nearest / f"{secrets.token_hex(8)}-{output.name}"
    try:
        with open_source(file) as source:
            return replace(preview(source, there), output=str(output))
    except LoraOpsError as error:
        return error


def _is_of_peft(file: Path) -> bool:
    """Whether a file is the weights of one of PEFT's folders, which is an adapter as a whole."""
    return file.name == WEIGHTS and is_peft_folder(file.parent)


def _edited(file: Path, output: Path, edit: Edit) -> Report | LoraOpsError:
    try:
        make_folder(output.parent)
        with open_source(file) as source:
            return edit(source, output)
    except LoraOpsError as error:
        return error
