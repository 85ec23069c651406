"""What the registry hands out: all that the nodes need, nothing else, and nothing that its scan flags."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

import archive
import pytest
from commands import ROOT

MOST = 5_000_000  # bytes, before compression
PARTS = {"__init__.py", "version.py", "lora_ops", "nodes", "pictures"}
PAPERS = {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"}
SHOWN = {"web", "locales", "example_workflows"}
ENDINGS = {"", ".jpg", ".js", ".json", ".md", ".png", ".py", ".toml"}
#: What ComfyUI has: neither the Manager nor we install anything.
THERE = {"PIL", "numpy", "safetensors", "torch"}
HOST = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server"}
#: What is used where it is found, and where.
OPTIONAL = {
    ("jaxtyping", "lora_ops/linalg/_shapes.py"),
    ("bitsandbytes", "lora_ops/training/weights.py"),
    ("tomli", "lora_ops/operations/merge/recipes/document.py"),
    ("yaml", "lora_ops/operations/merge/recipes/foreign/mergekit.py"),
}
#: What the registry's scan flags, and others that a pack has no business with.
FLAGGED = {
    *("aiohttp", "cryptography", "ctypes", "ftplib", "http", "httpx", "multiprocessing"),
    *("requests", "runpy", "shelve", "smtplib", "socket", "subprocess", "urllib", "websocket"),
}
#: Makers of parts in other processes, which no node asks for.
ENGINES = {f"lora_ops/parts/{name}.py" for name in ("process", "processes", "ray_engine")}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.putenv"}


@pytest.fixture(scope="module")
def names() -> list[str]:
    return archive.shipped()


def top(name: str) -> str:
    return name.partition("/")[0]


def test_the_nodes_and_what_they_need_are_in(names: list[str]) -> None:
    needed = [name for name in archive.checkout() if top(name) in PARTS | PAPERS | SHOWN]
    assert set(needed) >= ENGINES
    needed = [name for name in needed if name not in ENGINES]
    assert len(needed) > 150
    assert set(needed) <= set(names)
    assert {*PARTS, *PAPERS} <= {top(name) for name in names}


def test_nothing_else_is_in(names: list[str]) -> None:
    assert {top(name) for name in names} <= PARTS | PAPERS | SHOWN
    assert {ending(name) for name in names} <= ENDINGS
    assert not any(part.startswith((".", "test")) for name in names for part in name.split("/"))
    assert sum((ROOT / name).stat().st_size for name in names) < MOST


def ending(name: str) -> str:
    return "." + name.rpartition(".")[2] if "." in name else ""


def test_nothing_is_installed_or_run_by_the_manager() -> None:
    hooks = ("requirements.txt", "install.py", "uninstall.py", "prestartup_script.py")
    assert [name for name in hooks if (ROOT / name).exists()] == []


def flags(code: str) -> Iterator[str]:
    """What a scan would stop at: modules by name, calls, and pickles read as code."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from FLAGGED & {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from FLAGGED & {(node.module or "").partition(".")[0]}
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            yield from {called} & CALLS
            if called in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
                yield called
            if called == "torch.load" and not reads_weights_only(node):
                yield called
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "os.environ":
            yield "os.environ"


def reads_weights_only(call: ast.Call) -> bool:
    return any(
        word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords
    )


def code(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_the_scan_finds_nothing(names: list[str]) -> None:
    found = {name: [*flags(code(name))] for name in names if name.endswith(".py")}
    assert {name: flagged for name, flagged in found.items() if flagged} == {}
    assert len(found) > 100, "the walk must find the modules"


@pytest.mark.parametrize(
    "line",
    [
        "import subprocess",
        "from urllib.request import urlopen",
        "eval('1')",
        "os.system('ls')",
        "os.environ['A'] = '1'",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(data)",
    ],
)
def test_the_scan_sees(line: str) -> None:
    assert len([*flags(f"def f():\n    {line}")]) == 1


def test_the_scan_passes_what_is_harmless() -> None:
    harmless = (
        "from .http import x\nmodel.eval()\nre.compile('a')\ntorch.load(p, weights_only=True)"
    )
    assert [*flags(harmless)] == []


def test_comfyui_has_all_that_is_imported(names: list[str]) -> None:
    known = THERE | HOST | set(sys.stdlib_module_names)
    for name in (name for name in names if name.endswith(".py")):
        missing = archive.foreign(ast.parse(code(name))) - known
        assert {root for root in missing if (root, name) not in OPTIONAL} == set(), name
