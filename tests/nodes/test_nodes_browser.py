"""The pack in ComfyUI's front end, in a browser: examples as shipped, and reports where they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import example_models as examples
import pytest
from browser import Page, opened
from comfy_server import Server, running
from object_info import WORKFLOWS

BORN = """() => Object.keys(LiteGraph.registered_node_types)
    .filter((name) => name.startsWith("Lorakit")).map((name) => {
        const node = LiteGraph.createNode(name);
        app.graph.add(node);
        return [name, ...node.size];
    })"""
#: Pixels of a line of a report, and of a letter.
LINE, LETTER = 11, 6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("playwright.sync_api", reason="drives the browser")
    base = tmp_path_factory.mktemp("browser")
    with running(base) as started:
        examples.models(base)
        yield started


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Page]:
    with opened(server) as found:
        yield found


def overlapping(nodes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of nodes that lie on each other, titles included."""
    found = []
    for at, one in enumerate(nodes):
        for other in nodes[:at]:
            apart = any(
                first["pos"][axis] + first["size"][axis] <= second["pos"][axis] - title
                for axis, title in ((0, 0), (1, 30))
                for first, second in ((one, other), (other, one))
            )
            found += [] if apart else [(one["type"], other["type"])]
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_an_example_is_read_as_it_was_meant(page: Page, path: Any) -> None:
    page.open(examples.example(path.stem))
    assert page.sent() == {
        number: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for number, node in json.loads(path.read_text("utf-8")).items()
    }


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_an_example_runs_and_has_room_for_its_reports(page: Page, path: Any) -> None:
    shipped = examples.small(examples.example(path.stem))
    page.open(shipped)
    assert page.run() == "execution_success"
    reports = page.reports()
    ours = {str(node["id"]) for node in shipped["nodes"] if node["type"].startswith("Lorakit")}
    assert ours == reports.keys()
    assert all(text.startswith(("done · ", "warning · ")) for text in reports.values())
    after = page.saved()["nodes"]
    assert overlapping(after) == []
    sizes = {node["id"]: node["size"] for node in shipped["nodes"]}
    grown = [
        node["type"]
        for node in after
        if node["type"].startswith("Lorakit")
        and any(now > then + 1 for now, then in zip(node["size"], sizes[node["id"]], strict=True))
    ]
    assert grown == []
    if path.stem == "block_weights":  # what `where` says takes the place of the blocks' strengths
        assert "; 0.9 in IN01, M00, OUT00-OUT01 (16 layers); 0.8 in M00 (" in reports["4"]


def scaled(strength: float) -> dict[str, Any]:
    """A loader, a node that scales, and one that shows its report."""
    kinds = ("LorakitLoadLora", "LorakitScaleLora", "PreviewAny")
    values = ([examples.LORAS[0]], [strength, "", ""], [])
    nodes: list[dict[str, Any]] = [
        {"id": at + 1, "type": kind, "pos": [400 * at, 0], "size": [340, 260], "mode": 0}
        | {"inputs": [], "outputs": [], "properties": {}, "widgets_values": values[at]}
        for at, kind in enumerate(kinds)
    ]
    nodes[0]["outputs"] = [{"name": "lora", "type": "LORA_MODEL", "links": [1]}]
    nodes[1]["inputs"] = [{"name": "lora", "type": "LORA_MODEL", "link": 1}]
    nodes[1]["outputs"] = [
        {"name": "lora", "type": "LORA_MODEL", "links": []},
        {"name": "report", "type": "STRING", "links": [2]},
    ]
    nodes[2]["inputs"] = [{"name": "source", "type": "*", "link": 2}]
    links = [[1, 1, 0, 2, 0, "LORA_MODEL"], [2, 2, 1, 3, 0, "STRING"]]
    return {"last_node_id": 3, "last_link_id": 2, "nodes": nodes, "links": links, "version": 0.4}


def test_a_report_stays_where_a_graph_is_opened_again_and_nothing_runs(page: Page) -> None:
    page.open(scaled(0.5))
    assert set(page.reports().values()) == {""}
    assert page.run() == "execution_success"
    reports = page.reports()
    assert reports["2"].startswith(f"done · {examples.LORAS[0]}: 53 layers, rank 4")
    saved = page.saved()
    page.open(scaled(0.25))
    assert set(page.reports().values()) == {""}
    page.open(saved)
    assert page.reports() == reports
    assert page.sent()["2"]["inputs"].keys() == {"lora", "strength", "blocks", "where"}


def test_a_run_out_of_the_cache_shows_the_report_too(page: Page) -> None:
    page.open(scaled(0.125))
    assert page.run() == "execution_success"
    reports = page.reports()
    page.open(scaled(0.125))
    assert set(page.reports().values()) == {""}
    assert page.run() == "execution_success"
    assert page.reports() == reports


def test_an_open_graph_of_somebody_else_is_left_alone(page: Page, server: Server) -> None:
    """Whose node has the same id, which broadcast texts are shown by."""
    from_widgets = """() => app.graph.nodes.flatMap((node) => (node.widgets ?? [])
        .map((one) => [String(node.id), one.name, String(one.value)]))"""
    page.open(scaled(0.75))
    before = page.ask(from_widgets)
    graph = {
        "1": {"class_type": "LorakitLoadLora", "inputs": {"lora_name": examples.LORAS[1]}},
        "2": {"class_type": "LorakitScaleLora", "inputs": {"lora": ["1", 0], "strength": 0.0625}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
    }
    server.run(graph)
    page.ask("() => new Promise((done) => setTimeout(done, 1000))")
    assert page.ask(from_widgets) == before


def test_an_error_stands_on_the_node_in_place_of_the_last_report(page: Page) -> None:
    page.open(scaled(0.5))
    page.run()
    workflow = page.saved()
    (scaling,) = (node for node in workflow["nodes"] if node["type"] == "LorakitScaleLora")
    scaling["widgets_values"][1] = "NOWHERE=1"
    page.open(workflow)
    assert page.run() == "execution_error"
    assert page.reports()["2"].startswith("error · ")
    assert "NOWHERE" in page.reports()["2"]


def test_a_fresh_node_has_room_for_a_report(page: Page) -> None:
    page.open(scaled(1.0))
    born = page.ask(BORN)
    assert len(born) == len(
        page.ask(
            "() => Object.keys(LiteGraph.registered_node_types)"
            ".filter((name) => name.startsWith('Lorakit'))"
        )
    )
    heights = page.ask("""() => app.graph.nodes.flatMap((node) => (node.widgets ?? [])
        .filter((one) => one.name === "lorakit report")
        .map((one) => one.options.getMinHeight()))""")
    assert len(heights) == len(born) + 2
    assert min(heights) >= 6 * LINE
    for name, width, height in born:
        assert width >= 50 * LETTER, name
        assert height >= 6 * LINE, name
        if name in ("LorakitInspectLora", "LorakitCompareLoras", "LorakitLoraInfo"):
            assert height >= 6 * LINE + 200, f"{name} shows a picture"
