"""What comes with the nodes: help pages, translations and example workflows, whole and up to date."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from make_pages import items
from object_info import SNAPSHOT, WORKFLOWS, by_position
from PIL import Image
from translations import LANGUAGES, LETTERS, translations

INFO: dict[str, Any] = {
    name: node
    for name, node in json.loads(SNAPSHOT.read_text("utf-8")).items()
    if name.startswith("Lorakit")
}
PAGES = ROOT / "web" / "docs"
EXAMPLES = ROOT / "example_workflows"
# What a user types: it stays as it is in every language.
TYPED = re.compile(
    r"\b[a-z_]+=(?:[\d.]*\d)?|`\w+`|\b[A-Z]{4,}\b|\b\w+/\w+\b|\*\w+\*|\b[a-z]+_[a-z]+\b", re.ASCII
)
NO_WORDS = {"LoRA", "CLIP", "t"}


def inputs(node: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, type, options) of each input, those of a method as ComfyUI's front end calls them."""
    for name, (kind, options) in {
        **node["input"]["required"],
        **node["input"].get("optional", {}),
    }.items():
        yield name, kind, options
        if kind == "COMFY_DYNAMICCOMBO_V3":
            for choice in options["options"]:
                for nested, (own, more) in choice["inputs"].get("required", {}).items():
                    yield f"{name}_{nested}", own, more


def texts(entry: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(where, text) of everything that is said."""
    if isinstance(entry, str):
        yield path, entry
        return
    for key, value in entry.items():
        yield from texts(value, f"{path}/{key}")


# Help pages


def test_every_node_has_a_page_and_every_page_a_node() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == set(INFO)


@pytest.mark.parametrize("name", INFO)
def test_a_page_says_it_all(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text("utf-8")
    assert page.startswith(f"# {INFO[name]['display_name']}\n")
    heads = [line for line in page.splitlines() if line.startswith("## ")]
    assert heads == ["## Inputs", "## Example", "## When something is off"]
    found = {one: (beside, values) for one, beside, _, values in items(page)}
    defaults: dict[str, set[float]] = {}
    for input_name, kind, options in inputs(INFO[name]):
        if kind in ("INT", "FLOAT"):
            defaults.setdefault(input_name, set()).add(options["default"])
    for input_name, kind, options in inputs(INFO[name]):
        own = input_name.removeprefix("method_")
        own = own.removeprefix("model_") if name == "LorakitBlockWeights" else own
        _, values = found[own]
        if kind in ("INT", "FLOAT"):
            *others, last = (f"{one:g}" for one in sorted(defaults[input_name]))
            told = f"{', '.join(others)} or {last}" if others else last  # by the method
            assert values == f"{options['min']:g} to {options['max']:g}, default {told}"
        if kind == "COMBO" and options["options"]:
            assert ", ".join(options["options"]) in values.replace("\\", "")
    assert len(items(page)) == len({input_name for input_name, _, _ in inputs(INFO[name])})
    assert "|---" not in page, "the panel of the front end is too narrow for a table"


# Translations


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_every_text_and_no_other(language: str) -> None:
    found = translations(language)
    assert found.keys() == INFO.keys()
    for name, node in INFO.items():
        entry = found[name]
        assert entry.keys() == {"display_name", "description", "inputs", "outputs"}, name
        assert entry["inputs"].keys() == {one for one, _, _ in inputs(node)}, name
        assert list(entry["outputs"]) == [str(at) for at in range(len(node["output"]))], name
        for part in (*entry["inputs"].values(), *entry["outputs"].values()):
            assert part.keys() == {"name", "tooltip"}, name


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_is_in_its_language(language: str) -> None:
    for where, text in texts(translations(language)):
        plain = text.rstrip("。") in NO_WORDS
        assert plain or LETTERS[language].search(text), f"{where}: {text}"
    assert not LETTERS[language].search("The LoRA. It is not changed.")


@pytest.mark.parametrize("language", LANGUAGES)
def test_nodes_have_names_of_their_own(language: str) -> None:
    names = [entry["display_name"] for entry in translations(language).values()]
    assert len(set(names)) == len(names)


def test_what_is_typed_stands_in_every_language(comfy: Any) -> None:
    """Rules, names and examples in a tooltip are in its translation too."""
    info, seen = comfy.get("/object_info"), 0
    for language in LANGUAGES:
        for name, entry in translations(language).items():
            for input_name, _, options in inputs(info[name]):
                typed = set(TYPED.findall(options["tooltip"]))
                kept = set(TYPED.findall(entry["inputs"][input_name]["tooltip"]))
                assert typed <= kept, f"{language} {name} {input_name}"
                seen += len(typed)
    assert seen > 100


def test_comfyui_hands_the_translations_out(comfy: Any) -> None:
    told = comfy.get("/i18n")
    for language in LANGUAGES:
        known = told[language]["nodeDefs"]
        assert {name: known[name] for name in INFO} == translations(language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_folders_of_the_list_are_in_the_language(language: str, comfy: Any) -> None:
    """Those that the host has no word for."""
    own = {"blocks", "edit", "extract", "inspect", "saving"}
    told = comfy.get("/i18n")[language]["nodeCategories"]
    assert own <= told.keys()
    assert all(LETTERS[language].search(told[name]) for name in own)
    used = {part for node in INFO.values() for part in node["category"].split("/")}
    assert used - own == {"model", "lorakit", "loaders", "merging"}


# Example workflows


def test_every_example_has_a_picture_and_an_api_version() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.json")}
    assert names == {path.stem for path in EXAMPLES.glob("*.jpg")}
    assert names == {path.stem for path in WORKFLOWS}
    assert len(list(EXAMPLES.iterdir())) == 2 * len(names)
    drawn = (ROOT / "docs" / "make_cards.py").read_text("utf-8")
    assert all(f'"{name}",' in drawn for name in names)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.jpg")), ids=lambda path: path.stem)
def test_a_picture_of_an_example_is_light_and_legible(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert picture.width >= 1200
    assert path.stat().st_size < 300_000


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_both_versions_of_an_example_are_one(path: Path) -> None:
    api = json.loads(path.read_text("utf-8"))
    saved = json.loads((EXAMPLES / path.name).read_text("utf-8"))
    assert by_position(saved, json.loads(SNAPSHOT.read_text("utf-8"))) == {
        number: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for number, node in api.items()
    }
    assert any(node["class_type"].startswith("Lorakit") for node in api.values())
    assert [node["type"] for node in saved["nodes"]].count("MarkdownNote") == 1


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("ExtractLora", [64, "knee", True, False, "bf16", "kohya"]),
        ("ExtractLoraFromFiles", ["a", "b", 64, "knee", True, False, "bf16", "kohya"]),
        ("ExtractAndSave", [64, "loras/a", "knee", True, False, "bf16", "kohya"]),
    ],
)
def test_graphs_of_the_first_version_load_as_they_were(kind: str, values: list[Any]) -> None:
    """From before `allow_partial`: the front end hands values out by position."""
    node = {"id": 1, "type": f"Lorakit{kind}", "inputs": [], "widgets_values": values}
    info = json.loads(SNAPSHOT.read_text("utf-8"))
    (loaded,) = by_position({"links": [], "nodes": [node]}, info).values()
    told = {"rank": 64, "rule": "knee", "exact": True, "full_differences": False}
    assert told | {"dtype": "bf16", "format": "kohya"} == {
        name: value
        for name, value in loaded["inputs"].items()
        if value not in ("a", "b", "loras/a")
    }


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_of_an_example_do_not_lie_on_each_other(path: Path) -> None:
    saved = json.loads((EXAMPLES / path.name).read_text("utf-8"))
    boxes = [(*node["pos"], *node["size"]) for node in saved["nodes"]]
    for at, (x, y, w, h) in enumerate(boxes):
        for other_x, other_y, other_w, other_h in boxes[:at]:
            apart_x = x >= other_x + other_w or other_x >= x + w
            apart_y = y - 30 >= other_y + other_h or other_y - 30 >= y + h
            assert apart_x or apart_y
