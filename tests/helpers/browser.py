"""ComfyUI's own front end in a real browser: graphs are opened, run and looked at as by a user."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Generator
from typing import Any

import pytest
from comfy_server import Server

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_KEYS = ("Tab", "Enter", "ArrowUp", "ArrowDown")
_READY = "window.app && window.app.graph && window.app.extensionManager"
_RUN = """async () => {
  const { api } = window.comfyAPI.api;
  const ends = ["execution_success", "execution_error", "execution_interrupted"];
  const end = new Promise((done) => {
    for (const kind of ends) api.addEventListener(kind, () => done(kind), { once: true });
  });
  await app.queuePrompt(0);
  const refused = app.lastNodeErrors;
  if (refused && Object.keys(refused).length) return JSON.stringify(refused);
  // Whatever the server told before its end is drawn a frame later.
  const told = await end;
  await new Promise((done) => setTimeout(done, 500));
  return told;
}"""


class Page:
    """A window with the front end, in a browser of its own: a client for the server."""

    def __init__(self, page: Any) -> None:
        self._page = page

    def load(self, without: str = "") -> None:
        """Load it all again; a script of this name does not arrive."""
        self._page.unroute_all()
        if without:
            self._page.route(f"**/{without}*", lambda route: route.abort())
        self._page.reload()
        _wait(self._page)

    def ask(self, script: str, given: Any = None) -> Any:
        """What a function in JavaScript returns there."""
        return self._page.evaluate(script, given)

    def find(self, where: str) -> Any:
        """What a CSS selector finds, to be clicked, filled in, or measured."""
        return self._page.locator(where)

    def type(self, *parts: str) -> None:
        """Type texts, and press keys by their names, where the cursor is."""
        for part in parts:
            if part in _KEYS:
                self._page.keyboard.press(part)
            else:
                self._page.keyboard.type(part)

    def open(self, workflow: dict[str, Any]) -> None:
        """Open a workflow as a file of it is opened."""
        self.ask("async (workflow) => { await app.loadGraphData(workflow) }", workflow)
        self._page.wait_for_timeout(500)

    def run(self) -> str:
        """Queue what is open; how it ended, or why it was refused."""
        return self.ask(_RUN)

    def sent(self) -> dict[str, Any]:
        """What is sent when it is queued: class and inputs of each node."""
        output = self.ask("async () => (await app.graphToPrompt()).output")
        return {
            number: {"class_type": node["class_type"], "inputs": node["inputs"]}
            for number, node in output.items()
        }

    def saved(self) -> dict[str, Any]:
        """What is open, as a file of it would be."""
        return self.ask("() => app.graph.serialize()")

    def reports(self) -> dict[str, str]:
        """What stands on our nodes, by id."""
        return self.ask("""() => Object.fromEntries(app.graph.nodes.flatMap((node) =>
            (node.widgets ?? []).filter((one) => one.name === "lorakit report")
            .map((one) => [String(node.id), one.value])))""")


def _wait(page: Any) -> None:
    page.wait_for_function(_READY)
    page.wait_for_timeout(1000)


@contextlib.contextmanager
def opened(server: Server) -> Generator[Page]:
    """The front end of a server; the test skips where there is no browser, or nothing to drive it."""
    driver = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    path = os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("no Chromium found: install it, or set CHROMIUM_PATH")
    # A first visit is greeted with what covers the graph.
    server.post("/settings", {"Comfy.TutorialCompleted": True})
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1900, "height": 1100})
        page.set_default_timeout(120_000)
        page.goto(server.address)
        _wait(page)
        yield Page(page)
        browser.close()
