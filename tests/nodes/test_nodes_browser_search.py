"""The nodes where they are looked for, in the search of ComfyUI's front end; their titles and help there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Page, opened
from comfy_server import Server, running

#: What is typed, and one of the nodes that should be among the first.
WANTED = {
    "lora block weight": "Block Weights",
    "power lora loader": "LoRA Loader (many)",
    "multi lora": "LoRA Loader (many)",
    "lora loader": "LoRA Loader (many)",
    "lora": "LoRA Info",
    "trigger": "LoRA Info",
    "load lora": "Load LoRA (lorakit)",
    "lora stack": "LoRA Stack to LoRA",
    "apply lora stack": "Apply LoRA",
    "subtract lora": "Add LoRAs",
    "merge lora": "Add LoRAs",
    "lora strength": "Scale LoRA",
    "lbw": "Block Weights",
    "xy plot": "LoRA Block Sweep",
    "trigger words": "LoRA Info",
    "lora metadata": "Edit Metadata",
    "extract lora": "Extract LoRA",
    "extract and save lora": "Extract and Save LoRA (lorakit)",
    "svd": "Extract LoRA from Files",
    "resize lora": "Resize LoRA",
    "convert lora": "Convert LoRA",
    "save lora": "Save LoRA",
    "bake lora": "Bake LoRA into Checkpoint",
    "merge": "Merge Models",
    "merge models": "Merge Models",
    "ties": "Merge Checkpoints (TIES, DARE)",
    "dare": "Merge Checkpoints (TIES, DARE)",
    "checkpoint merge": "Merge Checkpoints (TIES, DARE)",
    "add difference": "Merge Checkpoints (TIES, DARE)",
    "block merge": "Merge Checkpoints (TIES, DARE)",
    "supermerger": "Merge Recipe",
    "save checkpoint": "Save Model (lorakit)",
    "save model": "Save Model (lorakit)",
    "quantise": "Save Model (lorakit)",
    "quantize": "Save Model (lorakit)",
    "fp8": "Save Model (lorakit)",
    "gguf": "Extract LoRA from Files",
}
FIRST = 5
OPEN = "() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
BOX = "input[aria-controls=results-list]"
FOUND = """() => [...document.querySelectorAll('[data-testid=result-item]')]
    .map((one) => one.innerText.split('\\n')[0])"""
# The list follows what is typed some frames later: it has, once another query's has gone by.
ELSE, NOTHING = "qqqqqqqqqq", "[data-testid=no-results]"
TITLES = """() => Object.fromEntries(Object.entries(LiteGraph.registered_node_types)
    .filter(([, made]) => made.nodeData).map(([name, made]) => [name, made.nodeData.display_name]))"""

SELECT = """() => {
    const node = LiteGraph.createNode("LorakitApplyLora");
    app.graph.add(node);
    app.canvas.selectNode(node);
    app.canvas.setDirty(true, true);
}"""
BEYOND = """() => {
    const panel = document.querySelector(".node-help-content");
    const { right } = panel.getBoundingClientRect();
    return [...panel.querySelectorAll("*")].filter((one) => one.getBoundingClientRect().right > right + 1)
        .map((one) => one.textContent.slice(0, 40));
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("playwright.sync_api", reason="drives the browser")
    with running(tmp_path_factory.mktemp("search")) as started:
        yield started


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Page]:
    with opened(server) as found:
        yield found


@pytest.fixture(scope="module")
def results(page: Page) -> dict[str, list[str]]:
    """The titles that each query finds, the best first."""
    page.ask(OPEN)
    box, found = page.find(BOX), {}
    for query in WANTED:
        box.fill(ELSE)
        page.find(NOTHING).wait_for()
        box.fill(query)
        page.find(NOTHING).wait_for(state="detached")
        found[query] = page.ask(FOUND)
    return found


@pytest.mark.parametrize("query", WANTED)
def test_a_query_finds_a_node_among_the_first(query: str, results: dict[str, list[str]]) -> None:
    assert WANTED[query] in results[query][:FIRST]


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_no_title_is_like_one_of_the_host(language: str, page: Page, server: Server) -> None:
    """Nor differs from it in capitals and spaces alone."""
    server.post("/settings", {"Comfy.Locale": language})
    page.load()
    titles = {name: "".join(title.casefold().split()) for name, title in page.ask(TITLES).items()}
    server.post("/settings", {"Comfy.Locale": "en"})
    ours = {title for name, title in titles.items() if name.startswith("Lorakit")}
    others = {title for name, title in titles.items() if not name.startswith("Lorakit")}
    assert len(ours) >= 28
    assert len(others) > 400
    assert ("加载lora" in others) == (language == "zh")
    assert ours & others == set()


@pytest.mark.parametrize(("language", "word"), [("en", "Inputs"), ("zh", "输入"), ("ja", "入力")])
def test_the_help_of_a_node_is_in_the_language_and_fits(
    language: str, word: str, page: Page, server: Server
) -> None:
    """Nothing of it stands beyond the panel's edge."""
    server.post("/settings", {"Comfy.Locale": language})
    page.load()
    server.post("/settings", {"Comfy.Locale": "en"})
    page.open({"nodes": [], "links": [], "version": 0.4})
    page.ask(SELECT)
    page.find("[data-testid=info-button]").click()
    help = page.find(".node-help-content h2").first
    help.wait_for()
    assert help.inner_text() == word
    assert page.ask(BEYOND) == []
