"""A model in several files, named by an index: Hugging Face's `*.safetensors.index.json`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path, PureWindowsPath
from typing import cast

from ...errors import FormatError
from ..base import FileSource, is_file, open_binary, quote, read_errors
from .joined import JoinedSource
from .single import open_file

_MAX_INDEX = 100_000_000  # bytes, as for a header


def open_sharded(path: str | Path) -> JoinedSource:
    """Open the shards that an index lists: all headers now, each tensor when asked for.

    Args:
        path: A JSON file whose `weight_map` maps each key to a file beside the index. Tensors
            that it does not list are not part of the model.

    Raises:
        ArgumentError: the index does not exist.
        FormatError: the index is damaged, a shard is missing or damaged, lies outside the folder
            of the index, or lacks a key that the index promises.
    """
    path = Path(path)
    weight_map = _read_weight_map(path)
    routes: dict[str, tuple[FileSource, str]] = {}
    with contextlib.ExitStack() as stack:
        for shard in sorted(set(weight_map.values())):
            source = stack.enter_context(open_file(_shard_path(path, shard)))
            keys = source.keys()
            routes |= {key: (source, key) for key in keys if weight_map.get(key) == shard}
        for key, shard in weight_map.items():
            if key not in routes:
                raise FormatError(
                    f"the index promises {quote(key)} in {quote(shard)}, which lacks it; "
                    "index and shards are of different downloads",
                    path=path,
                )
        stack.pop_all()
    return JoinedSource(path, routes, paths=(path,))


def _read_weight_map(path: Path) -> dict[str, str]:
    with open_binary(path) as file, read_errors(path):
        text = file.read(_MAX_INDEX + 1)
    if len(text) > _MAX_INDEX:
        raise FormatError(f"longer than {_MAX_INDEX} bytes: not an index of shards", path=path)
    try:
        document: object = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not a JSON text: {error}", path=path) from error
    index = cast("dict[str, object]", document) if isinstance(document, dict) else {}
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(
            "not an index of shards: it has no `weight_map`; give the file or folder of the weights",
            path=path,
        )
    pairs = cast("dict[str, object]", weight_map)
    if not all(isinstance(shard, str) for shard in pairs.values()):
        raise FormatError("`weight_map` must map keys to file names", path=path)
    return cast("dict[str, str]", pairs)


def _shard_path(index: Path, shard: str) -> Path:
    """The shard's path; the index is a stranger's and must not lead out of its folder.

    Windows' rules for names know POSIX's too. Links are followed: Hugging Face's cache is made of them.
    """
    windows = PureWindowsPath(shard)
    if windows.anchor or ".." in windows.parts or "\0" in shard:
        raise FormatError(f"the shard {quote(shard)} lies outside the index's folder", path=index)
    path = index.parent / shard
    if not is_file(path):
        raise FormatError(
            f"the shard {quote(shard)} is missing; download it into the same folder", path=index
        )
    return path
