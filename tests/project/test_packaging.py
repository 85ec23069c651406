"""The wheel's recipe against the folders; that it builds and runs is checked by the whole check."""

from __future__ import annotations

import ast
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from archive import foreign
from commands import ROOT

import lorakit

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST = 8_000_000  # bytes of data in the wheel
NOT_SHIPPED = {"tests", "benchmarks", "docs", "build", "dist"}
#: Import names that differ from the distribution's.
DISTRIBUTIONS = {"PIL": "pillow"}
#: What is imported without being a dependency, and where.
ELSEWHERE = {
    ("sklearn", "examples/digits/train.py"),  # only who trains the sample again needs it: `dev`
    (
        "yaml",
        "lora_ops/operations/merge/recipes/foreign/mergekit.py",
    ),  # else an error that names it
    ("jaxtyping", "lora_ops/linalg/_shapes.py"),  # has a stand-in
    ("bitsandbytes", "lora_ops/training/weights.py"),  # of whoever loaded a model through it
}
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server"}


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def folders() -> list[Path]:
    """Every folder of the package, the root first."""
    found = [path.parent for path in ROOT.rglob("__init__.py")]
    inside = [path for path in found if path == ROOT or not hidden(path.relative_to(ROOT))]
    return sorted(inside)


def hidden(path: Path) -> bool:
    return path.parts[0] in NOT_SHIPPED or any(part.startswith(".") for part in path.parts)


def dotted(path: Path) -> str:
    return ".".join(["lorakit", *path.relative_to(ROOT).parts])


def test_every_folder_is_listed(recipe: dict[str, Any]) -> None:
    listed = recipe["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(dotted(path) for path in folders())
    for path in folders()[1:]:
        # A folder of modules without `__init__.py` would be missing from both lists.
        assert (path.parent / "__init__.py").is_file()


def test_no_folder_of_modules_lacks_its_init() -> None:
    modules = [path for path in ROOT.rglob("*.py") if not hidden(path.relative_to(ROOT))]
    assert {path.parent for path in modules} == set(folders())


def test_the_root_holds_two_modules() -> None:
    """Any other would land in the wheel, and stand in for modules of that name."""
    assert sorted(path.name for path in ROOT.glob("*.py")) == [
        "__init__.py",
        "cli.py",
        "version.py",
    ]


def test_the_version_is_one(recipe: dict[str, Any]) -> None:
    assert recipe["project"]["version"] == lorakit.__version__


def test_all_data_is_shipped_and_small(recipe: dict[str, Any]) -> None:
    data = recipe["tool"]["setuptools"]["package-data"]
    total = 0
    for folder in folders()[1:]:
        for path in folder.iterdir():
            if path.is_dir() or path.suffix in (".py", ".pyc"):
                continue
            patterns = data.get(dotted(folder), [])
            assert any(fnmatchcase(path.name, p) for p in patterns), f"{path} is in no package-data"
            total += path.stat().st_size
    assert 0 < total <= MOST
    for name, patterns in data.items():
        folder = ROOT.joinpath(*name.split(".")[1:])
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{name}: nothing fits {pattern}"


def test_type_checkers_are_told_that_there_are_types(recipe: dict[str, Any]) -> None:
    """Without the marker every name of an installed lorakit is unknown to them (PEP 561)."""
    assert "py.typed" in recipe["tool"]["setuptools"]["package-data"]["lorakit"]
    assert (ROOT / "py.typed").read_bytes() == b""


def test_everything_imported_is_a_dependency(recipe: dict[str, Any]) -> None:
    """What only the development environment has would crash at the user's."""
    dependencies = {line.split(">")[0].strip() for line in recipe["project"]["dependencies"]}
    for path in (path for folder in folders() for path in folder.glob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        for name in foreign(ast.parse(path.read_text("utf-8"))) - set(sys.stdlib_module_names):
            if (name, where) in ELSEWHERE or (where.startswith("nodes/") and name in COMFYUI):
                continue
            if name == "lorakit" and path.parent == ROOT / "examples":
                continue  # a user's program
            assert DISTRIBUTIONS.get(name, name) in dependencies, f"{where} imports {name}"


def test_the_walk_sees_imports() -> None:
    code = "import a.b\nfrom c import d\nif TYPE_CHECKING:\n import e\ndef f():\n import g\nfrom . import h"
    assert foreign(ast.parse(code)) == {"a", "c", "g"}
