"""Where ComfyUI is there and its requirements are not, tests of the host skip, and say what is missing."""

from __future__ import annotations

import comfy_host
import pytest
from comfy_server import running
from keys import comfyui


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A folder of ComfyUI whose modules import what no environment has."""
    tree = tmp_path / "ComfyUI"
    (tree / "comfy").mkdir(parents=True)
    (tree / "comfy" / "lora.py").touch()
    (tree / "comfy" / "options.py").write_text("import a_requirement_of_comfyui")
    monkeypatch.setenv("COMFYUI_PATH", str(tree))
    return tree


WAYS = {
    "a host": lambda folder: comfy_host.started().__enter__(),
    "a server": lambda folder: running(folder).__enter__(),
    "names": lambda folder: comfyui.ask(),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_host_without_its_requirements_is_skipped(way, bare, tmp_path):
    with pytest.raises(pytest.skip.Exception) as skipped:
        WAYS[way](tmp_path)
    assert str(bare) in skipped.value.msg
    assert "No module named 'a_requirement_of_comfyui'" in skipped.value.msg


def test_the_host_is_asked_once(bare, monkeypatch):
    asked = []
    run = comfy_host.subprocess.run
    monkeypatch.setattr(
        comfy_host.subprocess, "run", lambda *args, **more: asked.append(args) or run(*args, **more)
    )
    for _ in range(3):
        with pytest.raises(pytest.skip.Exception):
            comfy_host.find_host()
    assert len(asked) == 1


def test_a_host_that_fails_otherwise_is_not_skipped(bare):
    """A fault of ComfyUI, or of these tests, is a failure."""
    (bare / "comfy" / "options.py").write_text("raise RuntimeError('broken')")
    comfy_host.find_host()
