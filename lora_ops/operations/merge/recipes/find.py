"""Finding the files of a recipe: by name and hash, then by size and hash, whatever they are called."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ....errors import ArgumentError
from ....files import INDEX, input_sha256, open_source
from ....files.hashes import file_sha256
from ....files.remembered import remembered
from ....text import plain
from .recipe import Recipe, RecipeFile

_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_PIPELINE = "model_index.json"  # in a folder of diffusers


@dataclass(frozen=True, slots=True)
class Found:
    """Where the files of a recipe are.

    Attributes:
        paths: By the keys of the recipe's files; one that was not found is absent.
        notes: A sentence for each file that was not found, or is known by its name alone.
    """

    paths: Mapping[str, Path]
    notes: tuple[str, ...] = ()


def find_files(
    recipe: Recipe,
    folders: Sequence[str | Path],
    *,
    hash_all: bool = False,
    sha256: Callable[[Path], str] | None = None,
) -> Found:
    """Find the files of a recipe in folders, and in the folders in these.

    A file whose name is right is hashed first; if the hash is another's, those of the same size are.
    Where the recipe has no hash, the name decides. A model in shards is its index; a folder of diffusers
    is one model, too.

    Args:
        recipe: Any.
        folders: Where to look.
        hash_all: Hash all models, where a file's size is not recorded and no name fits.
        sha256: What takes the hash of a file; None: it is taken, and remembered.

    Raises:
        ArgumentError: A folder is none.
    """
    there = _models_in(folders)
    hashes: dict[Path, str] = {}

    def hash_of(path: Path) -> str:
        if path not in hashes:
            hashes[path] = (sha256 or _sha256)(path)
        return hashes[path]

    paths: dict[str, Path] = {}
    notes: list[str] = []
    for key, file in recipe.files.items():
        named = _named(file.name, there)
        if not file.sha256:
            if named:
                paths[key] = named[0]
                more = f", the first of {len(named)}" if len(named) > 1 else ""
                notes.append(f"`{file.name}` is known by its name alone: {plain(named[0])}{more}")
            else:
                notes.append(f"`{file.name}` was not found; the recipe has no hash to know it by")
            continue
        others = [path for path in there if hash_all or _size(path) == file.bytes]
        found = next((path for path in [*named, *others] if hash_of(path) == file.sha256), None)
        if found is not None:
            paths[key] = found
        else:
            notes.append(_missing(file, named))
    return Found(paths, tuple(notes))


def _sha256(path: Path) -> str:
    """The hash by which a merge records a file, an index of shards or a folder."""
    if not path.is_dir() and not path.name.lower().endswith(INDEX):
        return remembered(path, partial(file_sha256, path))
    with open_source(path) as source:
        return input_sha256(source)


def _missing(file: RecipeFile, named: list[Path]) -> str:
    if named:
        return f"`{file.name}` is there, but is another file: SHA-256 {file.sha256[:12]}… is wanted"
    url = f"; it can be had at {plain(file.url)}" if file.url else ""
    return f"`{file.name}`, SHA-256 {file.sha256[:12]}…, was not found{url}"


def _models_in(folders: Iterable[str | Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ArgumentError("this is no folder to look for models in", path=folder)
        for place, inner, names in os.walk(folder):
            inner.sort()
            if _PIPELINE in names:
                found[Path(place)] = None
            for name in sorted(names):
                if name.lower().endswith((*_SUFFIXES, INDEX)):
                    found[Path(place) / name] = None
    return list(found)


def _named(name: str, there: Iterable[Path]) -> list[Path]:
    """Files of that name; else of that name without its ending, which some programs leave out."""
    paths = list(there)
    exact = [path for path in paths if path.name == name]
    stem = name.lower()
    for suffix in _SUFFIXES:
        stem = stem.removesuffix(suffix)
    return exact or [path for path in paths if path.stem.lower() == stem]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
