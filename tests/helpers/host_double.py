"""ComfyUI's modules as typings/ describes them, so that the nodes can be imported where it is not.

The stubs are run as they stand: calls are checked against their signatures and do nothing. Inputs and
outputs keep what they were given in `given`.
"""

from __future__ import annotations
import __future__

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from commands import ROOT

STUBS = ROOT / "typings"
NODES = "lorakit.nodes"
#: What answers more than None, by module: whoever lists the nodes' inputs asks these.
ANSWERS: dict[str, dict[str, Callable[..., Any]]] = {
    "comfy_api.latest.io": {"Custom": lambda module, io_type: module.ComfyTypeIO},
    "folder_paths": {
        "get_filename_list": lambda module, folder: [],
        "get_folder_paths": lambda module, folder: [],
        "get_input_directory": lambda module: "no such folder",
    },
}


class _Stub(importlib.machinery.SourceFileLoader):
    """Runs a stub; annotations stay text, as they may name what comes later."""

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:
        flags = __future__.annotations.compiler_flag
        return compile(data, path, "exec", flags, dont_inherit=True, optimize=_optimize)

    def cache_from_source(self, path: str) -> str:
        raise NotImplementedError  # nothing is written into typings/

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for name in ("Input", "Output"):
            if isinstance(kind := getattr(module, name, None), type):
                kind.__new__ = _kept
        for name, answer in ANSWERS.get(module.__name__, {}).items():
            setattr(module, name, functools.partial(answer, module))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        place = STUBS.joinpath(*name.split("."))
        for file in (place / "__init__.pyi", place.with_suffix(".pyi")):
            if file.is_file():
                folders = [str(place)] if file.stem == "__init__" else None
                return importlib.util.spec_from_file_location(
                    name, file, loader=_Stub(name, str(file)), submodule_search_locations=folders
                )
        return None


def _kept(kind: type, *values: Any, **named: Any) -> Any:
    made = object.__new__(kind)
    bound = inspect.signature(kind.__init__).bind(made, *values, **named).arguments
    made.given = {name: value for name, value in bound.items() if name != "self"}
    return made


@contextlib.contextmanager
def standing_in() -> Iterator[None]:
    """Within this, `lorakit.nodes` finds the stubs for ComfyUI; afterwards nothing of either is left."""
    tops = {Path(one.name).stem for one in STUBS.iterdir()}
    before = set(sys.modules)
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in tops or name.startswith(NODES):
                del sys.modules[name]
