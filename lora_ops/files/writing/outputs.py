"""Checks of an output's name, before hours of work go into it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import ArgumentError, WriteError
from .memory import MemoryFile, Output
from .publish import check_name


def check_output(
    output: Output, inputs: Sequence[Path], *, force: bool, suffix: str = ".safetensors"
) -> None:
    """Refuse a name under which the result could not, or must not, be written.

    Args:
        output: Where the result is to go; in memory there is nothing to check.
        inputs: The files it is made from.
        force: Whether a file that is already there may be replaced.
        suffix: What the name must end in.

    Raises:
        ArgumentError: the output is an input (also by another name), exists already, is a folder,
            a pipe or a device, does not end in the suffix, or lies where nothing can be written.
    """
    if isinstance(output, MemoryFile):
        return
    try:
        _check(output, inputs, force, suffix)
    except OSError as error:
        raise ArgumentError(f"cannot be used: {error.strerror}", path=output) from error


def _check(output: Path, inputs: Sequence[Path], force: bool, suffix: str) -> None:
    if output.is_dir():
        raise ArgumentError("is a folder; give a file name in it", path=output)
    if not output.name.lower().endswith(suffix):
        raise ArgumentError(f"the output must end in `{suffix}`", path=output)
    _check_folder(output)
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise ArgumentError(
                f"the output is the same file as the input `{path}`; choose another name",
                path=output,
            )
    check_name(output, replace=force)
    if output.is_symlink():  # what it leads to is replaced
        _check_folder(Path(os.path.realpath(output)))


def _check_folder(output: Path) -> None:
    folder = output.parent
    if not folder.is_dir():
        nearest = next((parent for parent in folder.parents if parent.is_dir()), None)
        hint = f"; `{nearest}` does exist" if nearest else ""
        raise ArgumentError(f"the folder `{folder}` does not exist{hint}", path=output)
    if not os.access(folder, os.W_OK):
        raise ArgumentError(f"the folder `{folder}` may not be written to", path=output)


def make_folder(folder: Path) -> None:
    """Make a folder, and those around it, where they do not exist.

    Raises:
        WriteError: The system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"cannot be made: {error.strerror}; choose another place", path=folder
        ) from error
