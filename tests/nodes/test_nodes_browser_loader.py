"""LoRA Loader (many) in ComfyUI's front end, by mouse and keyboard; and without its table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import example_models as examples
import pytest
from browser import Page, opened
from comfy_server import Server, running

PIXEL, DETAIL = examples.LORAS
ADD = """(values) => {
    app.graph.clear();
    const node = LiteGraph.createNode("LorakitLoraLoader");
    app.graph.add(node);
    for (const [name, value] of Object.entries(values))
        node.widgets.find((one) => one.name === name).value = value;
    node.lorakitRows?.read();
    node.setSize([node.size[0], node.computeSize()[1]]);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [300, 200];
    app.canvas.setDirty(true, true);
}"""
HEAD = 0  # the box of all rows, before those of the rows


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("playwright.sync_api", reason="drives the browser")
    base = tmp_path_factory.mktemp("loader")
    with running(base) as started:
        examples.models(base)
        yield started


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes 2.0"])
def page(server: Server, request: pytest.FixtureRequest) -> Iterator[Page]:
    server.post("/settings", {"Comfy.VueNodes.Enabled": request.param})
    with opened(server) as found:
        yield found
    server.post("/settings", {"Comfy.VueNodes.Enabled": False})


def start(page: Page, rows: str = "") -> None:
    page.open({"nodes": [], "links": [], "version": 0.4})
    page.ask(ADD, {"rows": rows} if rows else {})
    page.find(".lorakit-rows .add").wait_for()


def kept(page: Page) -> str:
    (node,) = page.saved()["nodes"]
    (rows,) = node["widgets_values"]
    return str(rows)


def sent(page: Page) -> Any:
    (node,) = page.sent().values()
    return node["inputs"]["rows"]


def test_rows_are_added_by_typing(page: Page) -> None:
    start(page)
    page.find(".lorakit-rows .add").click()
    page.type(PIXEL, "Tab", "0.8", "Tab", "0.5", "Tab", "OUTALL", "Tab")
    page.find(".lorakit-rows .add").click()
    page.type("add-detail-xl", "Tab", "ArrowDown", "ArrowDown", "Tab")
    told = f"{PIXEL} | 0.8 | 0.5 | OUTALL\nadd-detail-xl | 0.9"
    assert kept(page) == sent(page) == told
    files = page.ask(
        "() => [...document.querySelectorAll('datalist option')].map((one) => one.value)"
    )
    assert set(files) == set(examples.LORAS)


def test_a_row_is_turned_off_moved_and_removed(page: Page) -> None:
    start(page, f"{PIXEL} | 1\n{DETAIL} | 0.5\ngone | 2")
    boxes, tools = page.find(".lorakit-rows [type=checkbox]"), page.find(".lorakit-rows button")
    assert page.find(".lorakit-rows .missing").count() == 1, "a file that is not there"
    boxes.nth(2).click()
    assert kept(page) == f"{PIXEL} | 1\n# {DETAIL} | 0.5\ngone | 2"
    assert sent(page) == f"{PIXEL} | 1\ngone | 2", "what is off is not sent"
    tools.nth(0 + 1).click()  # the first, down
    assert kept(page) == f"# {DETAIL} | 0.5\n{PIXEL} | 1\ngone | 2"
    tools.nth(2 * 3).click()  # the last, up
    tools.nth(1 * 3 + 2).click()  # the second, away
    assert kept(page) == f"# {DETAIL} | 0.5\n{PIXEL} | 1"


def test_all_rows_are_turned_on_and_off(page: Page) -> None:
    start(page, f"# {PIXEL} | 1\n{DETAIL} | 0.5")
    head = page.find(".lorakit-rows [type=checkbox]").nth(HEAD)
    assert head.evaluate("(one) => [one.checked, one.indeterminate]") == [False, True]
    head.click()
    assert sent(page) == kept(page) == f"{PIXEL} | 1\n{DETAIL} | 0.5"
    page.find(".lorakit-rows [type=checkbox]").nth(HEAD).click()
    assert (kept(page), sent(page)) == (f"# {PIXEL} | 1\n# {DETAIL} | 0.5", "")


def test_a_saved_graph_is_opened_as_it_was(page: Page) -> None:
    rows = f"# {PIXEL} | 1 | 0.25\n{DETAIL} | A | | IN=0.5"
    start(page, rows)
    before = page.saved()
    page.open(before)
    assert (kept(page), sent(page)) == (rows, f"{DETAIL} | A |  | IN=0.5")
    assert page.saved()["nodes"][0]["size"] == before["nodes"][0]["size"]
    fields = page.find(".lorakit-rows input:not([type=checkbox])")
    assert [one.input_value() for one in fields.all()] == [
        *(PIXEL, "1", "0.25", ""),
        *(DETAIL, "A", "", "IN=0.5"),
    ]


def test_tags_of_a_prompt_become_rows(page: Page) -> None:
    start(page, "a fox <lora:pixel-art-xl:0.8:0.3:lbw=OUTALL> <lora:add-detail-xl:1>")
    page.find(".lorakit-rows [type=checkbox]").nth(1).click()
    assert kept(page) == "# pixel-art-xl | 0.8 | 0.3 | OUTALL\nadd-detail-xl | 1"


def test_the_report_is_below_the_table_and_there_is_room_for_both(page: Page) -> None:
    start(page, f"{PIXEL} | 1\n{DETAIL} | 0.5\n# {DETAIL} | 2\n{DETAIL}")
    boxes = [
        page.find(where).first.bounding_box()
        for where in (".lorakit-rows .add", "textarea:visible")
    ]
    (add, report) = boxes
    assert add["y"] + add["height"] < report["y"]
    assert report["height"] > 40
    last = page.find(".lorakit-rows input.name").last.bounding_box()
    assert last["y"] + last["height"] <= add["y"]


def test_without_the_table_there_are_lines_of_text(page: Page) -> None:
    page.load(without="loader.js")
    page.open({"nodes": [], "links": [], "version": 0.4})
    page.ask(ADD, {"rows": f"{PIXEL} | 1\n# {DETAIL}"})
    assert page.find(".lorakit-rows").count() == 0
    assert sent(page) == kept(page) == f"{PIXEL} | 1\n# {DETAIL}"
    page.find("textarea:visible").first.fill(f"{DETAIL} | 0.25")
    assert sent(page) == f"{DETAIL} | 0.25"
    page.load()
