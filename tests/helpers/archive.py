"""What ComfyUI's registry would hand out of this checkout, and what its modules import."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import ROOT

IGNORE = "--exclude-from=.comfyignore"


def checkout() -> list[str]:
    """Every file that is, or would be, committed; the test skips outside of a git checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is shipped is said by git")
    return _git("-co", "--exclude-standard")


def shipped() -> list[str]:
    """Those of them that are in the archive."""
    checkout()
    left_out = set(_git("-ci", IGNORE))
    return [name for name in _git("-co", "--exclude-standard", IGNORE) if name not in left_out]


def copy(names: list[str], folder: Path) -> Path:
    """Some of the checkout's files in a folder of their own."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def foreign(tree: ast.AST) -> set[str]:
    """Top-level names that are imported at run time from outside the package."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
        names |= foreign(node)
    return names


def _git(*options: str) -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, check=True
    )
    names = done.stdout.decode().split("\0")
    return sorted({name for name in names if name and (ROOT / name).is_file()})
