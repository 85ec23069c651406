"""The nodes' interface as ComfyUI tells it: what saved workflows depend on changes on purpose only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from comfy_server import Server
from object_info import SNAPSHOT, interface, misplaced

RENEW = "LORAKIT_RENEW_OBJECT_INFO"
FOLDERS = {
    f"model/lorakit/{name}"
    for name in ("loaders", "edit", "extract", "blocks", "merging", "inspect", "saving")
}


@pytest.fixture(scope="module")
def info(comfy: Server) -> dict[str, Any]:
    """What the server says of all nodes."""
    return comfy.get("/object_info")


def test_the_interface_is_the_saved_one(info: dict[str, Any]) -> None:
    found = interface(info)
    moved = misplaced(json.loads(SNAPSHOT.read_text("utf-8")), found)
    assert moved == [], "inputs are only ever appended: saved graphs hold values by position"
    if os.environ.get(RENEW):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    saved = json.loads(SNAPSHOT.read_text("utf-8"))
    changed = [name for name in {**saved, **found} if saved.get(name) != found.get(name)]
    assert changed == [], f"if this is meant, run this test once with {RENEW}=1"
    assert sum(name.startswith("Lorakit") for name in saved) >= 14


def inputs(node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, options) of every input of a node, those of templates and choices too."""
    for name, (_, options) in {**node["required"], **node.get("optional", {})}.items():
        yield name, options
        nested = [one["inputs"] for one in options.get("options", []) if isinstance(one, dict)]
        if "template" in options:
            nested.append(options["template"]["input"])
        for one in nested:
            yield from inputs(one)


def test_everything_is_explained(info: dict[str, Any]) -> None:
    ours = {name: node for name, node in info.items() if name.startswith("Lorakit")}
    told = 0
    for name, node in ours.items():
        assert node["description"], name
        assert node["search_aliases"], name
        assert all(node["output_tooltips"]), name
        assert node["category"] in FOLDERS, name
        for input_name, options in inputs(node["input"]):
            assert len(options.get("tooltip", "")) > 5, f"{name}.{input_name}"
            told += 1
    assert told > 50


def test_no_title_is_one_of_the_host(info: dict[str, Any]) -> None:
    """Nor does one differ from it in capitals and spaces alone."""
    titles: dict[bool, list[str]] = {True: [], False: []}
    for name, node in info.items():
        titles[name.startswith("Lorakit")].append(
            "".join((node["display_name"] or name).casefold().split())
        )
    assert "extractandsavelora" in titles[False]
    assert len(set(titles[True])) == len(titles[True]) >= 28
    assert set(titles[True]) & set(titles[False]) == set()


def test_ranges_hold_their_defaults(info: dict[str, Any]) -> None:
    """A default outside of its range would fail as soon as a node is run untouched."""
    for name, node in info.items():
        for input_name, options in inputs(node["input"]) if name.startswith("Lorakit") else ():
            if "min" in options and "default" in options:
                within = options["min"] <= options["default"] <= options["max"]
                assert within, f"{name}.{input_name}"
