"""The pack as ComfyUI loads it: from any folder, at next to no cost, and where the host is older."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import archive
import comfy_host
import pytest
from commands import ROOT

import lorakit

NAMES = ("lorakit", "comfyui-lora.kit v2", "nodes", "torch")
FIRST = """
from comfy_api.latest import ComfyExtension

class Empty(ComfyExtension):
    async def get_node_list(self):
        return []

comfy_entrypoint = Empty
"""
Load = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """Load the archive's content from a folder of a name, with changes to it, in a real ComfyUI."""
    with comfy_host.started() as host:

        def load(
            name: str = "pack", changes: tuple[str, str, str] | None = None, **more: Any
        ) -> Any:
            folder = archive.copy(archive.shipped(), tmp_path_factory.mktemp("custom") / name)
            if changes is not None:
                file, old, new = changes
                text = (folder / file).read_text("utf-8")
                assert old in text
                (folder / file).write_text(text.replace(old, new), "utf-8")
            return host.ask("load_pack", {"folder": str(folder), **more})

        # What the host itself needs for any pack is none of ours.
        first = tmp_path_factory.mktemp("first")
        (first / "__init__.py").write_text(FIRST)
        assert host.ask("load_pack", {"folder": str(first)})["loaded"]
        yield load


@pytest.fixture(scope="module")
def loaded(load: Load) -> dict[str, Any]:
    return load()


def test_it_loads(loaded: dict[str, Any]) -> None:
    assert (loaded["loaded"], loaded["said"]) == (True, "")
    assert len(loaded["nodes"]) >= 14
    assert all(name.startswith("Lorakit") for name in loaded["nodes"])
    assert loaded["replaced"] == 0


def test_the_host_reads_the_recipe(loaded: dict[str, Any]) -> None:
    project, comfy = loaded["recipe"]["project"], loaded["recipe"]["tool_comfy"]
    assert (project["name"], project["version"]) == ("lorakit", lorakit.__version__)
    assert [comfy["publisher_id"], comfy["display_name"]] == ["lorakit", "lorakit: LoRA tools"]
    assert project["supported_comfyui_version"].startswith(">=0.")
    assert len(project["supported_accelerators"]) == 5


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_may_have_any_name(name: str, load: Load, loaded: dict[str, Any]) -> None:
    found = load(name)
    assert (found["nodes"], found["own"]) == (loaded["nodes"], loaded["own"])


def test_importing_it_loads_nothing_that_is_not_there(loaded: dict[str, Any]) -> None:
    """Neither the core, which the nodes import when they run, nor a module that the host does without."""
    assert loaded["others"] == []
    assert {name.split(".")[1] if name else "" for name in loaded["own"]} == {
        "",
        "nodes",
        "version",
    }


def test_what_is_loaded_is_seen(load: Load) -> None:
    line = "from .nodes.extension import LorakitExtension\n\n    return"
    more = line.replace("\n\n", "\n    from .lora_ops import errors\n    import ftplib\n\n")
    found = load(changes=("__init__.py", line, more))
    assert ".lora_ops.errors" in found["own"]
    assert found["others"] == ["ftplib"]


OLDER = ["search_aliases", "is_output_node"]


def test_a_host_too_old_for_a_field_loads_it(load: Load, loaded: dict[str, Any]) -> None:
    found = load(without=OLDER)
    assert (found["said"], found["nodes"]) == ("", loaded["nodes"])


def test_such_a_host_is_felt(load: Load) -> None:
    known = "if name in _FIELDS"
    found = load(without=OLDER, changes=("nodes/form/schema.py", known, "if name"))
    assert not found["loaded"]
    assert "unexpected keyword" in found["said"]


PINNED = "from comfy_api.v0_0_2 import"


def test_a_host_without_the_version_of_the_interface_gives_its_latest(
    load: Load, loaded: dict[str, Any]
) -> None:
    gone = "from comfy_api.v0_0_2_gone import"
    found = load(changes=("nodes/host/api.py", PINNED, gone))
    assert (found["said"], found["nodes"]) == ("", loaded["nodes"])


def test_one_file_names_the_interface() -> None:
    texts = {path.name: path.read_text("utf-8") for path in (ROOT / "nodes").rglob("*.py")}
    assert [name for name, text in texts.items() if "comfy_api" in text] == ["api.py"]
    assert PINNED in texts["api.py"]


def test_the_front_end_gets_pages_and_the_code_that_shows_reports() -> None:
    """Without which no node's text stays on it; it asks nothing but the front end itself."""
    scripts = {
        path.name: path for path in (ROOT / "web").rglob("*") if path.suffix in (".js", ".mjs")
    }
    imported = {"report.js": ("api", "app", "widgets"), "loader.js": ("app",)}
    assert scripts.keys() == imported.keys()
    for name, path in scripts.items():
        text = path.read_text("utf-8")
        taken = re.findall(r'from "(.*?)"', text)
        assert taken == [f"../../../scripts/{one}.js" for one in imported[name]]
        assert not re.search(r"fetch|https?:|import\(|eval|WebSocket|XMLHttp", text)
