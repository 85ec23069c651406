"""comfy-import-guard: everything that nodes/ takes from ComfyUI is there, in new versions and in old."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import archive
import pytest
from comfy_host import find_tree
from commands import ROOT

Check = Callable[..., dict[str, Any]]


def floor() -> tuple[int, ...]:
    """The oldest ComfyUI that the recipe allows."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    found = re.search(r'^requires-comfyui = ">=([\d.]+)"', text, re.MULTILINE)
    assert found
    return version(found[1])


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def releases(tree: Path) -> Iterator[tuple[tuple[int, ...], str]]:
    """(version, commit) wherever the version changed, the newest first; the test skips without history."""
    commits = git(tree, "log", "--format=%H", "--", "comfyui_version.py").split()
    if len(commits) < 2:
        pytest.skip("ComfyUI's folder is no git clone with history")
    for commit in commits:
        found = re.search(r'"([\d.]+)"', git(tree, "show", f"{commit}:comfyui_version.py"))
        if found:
            yield version(found[1]), commit


def git(tree: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=tree, capture_output=True, text=True)
    return done.stdout


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """What the guard says of the archive's content, for a version of ComfyUI."""
    guard = shutil.which("comfy-import-guard")
    if guard is None:
        pytest.skip("comfy-import-guard not found: pip install -r .ci/registry.txt")
    clones = tmp_path_factory.mktemp("clones")
    (clones / "ComfyUI").symlink_to(find_tree(), target_is_directory=True)
    options = ["--json", "--offline", "--no-update", "--strict", "--cache-dir", str(clones)]

    def check(commit: str, line: str = "") -> dict[str, Any]:
        install = tmp_path_factory.mktemp("install")
        pack = archive.copy(archive.shipped(), install / "custom_nodes" / "pack")
        (pack / "nodes" / "more.py").write_text(line)
        words = ["--comfy-dir", str(install), "--target", commit]
        done = subprocess.run(
            [guard, "check", *options, *words], capture_output=True, text=True, timeout=300
        )
        return {"status": done.returncode, **json.loads(done.stdout)}

    return check


@pytest.mark.parametrize("which", ["newest", "floor"])
def test_all_that_is_used_is_there(which: str, check: Check) -> None:
    known = list(releases(find_tree()))
    commit = "HEAD" if which == "newest" else min(one for one in known if one[0] >= floor())[1]
    found = check(commit)
    assert found["status"] == 0, found


def test_what_is_not_there_is_found(check: Check) -> None:
    next(releases(find_tree()))
    found = check("HEAD", "from comfy.lora import no_such_function\n")
    assert found["status"] == 1
    assert "no_such_function" in json.dumps(found)
