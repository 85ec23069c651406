"""Help pages in other languages: as whole as the English ones, and of one word with the nodes."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from make_pages import INPUTS, ITEM, PAGES, filled, items, translated
from translations import LANGUAGES, LETTERS, translations

TRANSLATED = translated()
SECTIONS = {"zh": ("## 示例", "## 遇到问题时"), "ja": ("## 例", "## うまくいかないとき")}
CODE = re.compile(r"`[^`]+`")


def name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def test_every_node_has_a_page_in_every_language() -> None:
    wanted = {(page.stem, language) for page in PAGES.glob("*.md") for language in LANGUAGES}
    assert len(wanted) > 50
    assert wanted == {(path.parent.name, path.stem) for path in TRANSLATED}


@pytest.mark.parametrize("path", TRANSLATED, ids=name)
def test_a_page_is_as_whole_as_the_english_one(path: Path) -> None:
    text, english = path.read_text("utf-8"), (PAGES / f"{path.parent.name}.md").read_text("utf-8")
    title = translations(path.stem)[path.parent.name]["display_name"]
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads == [f"# {title}", INPUTS[path.stem], *SECTIONS[path.stem]]
    lines, theirs = (
        [line for line in one.splitlines() if line.startswith("- ")] for one in (text, english)
    )
    assert len(lines) == len(theirs) > 0
    prose = [line for line in text.splitlines() if line and not ITEM.fullmatch(line)]
    assert all(LETTERS[path.stem].search(line) for line in prose)


@pytest.mark.parametrize("path", TRANSLATED, ids=name)
def test_its_inputs_are_said_in_the_nodes_texts(path: Path) -> None:
    """`python docs/make_pages.py` writes it."""
    assert path.read_text("utf-8") == filled(path)
    shown = translations(path.stem)[path.parent.name]["inputs"]
    told = {one.replace("\\", "") for _, _, one, _ in items(filled(path), path.stem)}
    assert told == {one["tooltip"] for one in shown.values()}


@pytest.mark.parametrize("path", TRANSLATED, ids=name)
def test_what_is_typed_stands_in_it(path: Path) -> None:
    """Names of inputs and what is filled in are those of the English page."""
    text, english = path.read_text("utf-8"), (PAGES / f"{path.parent.name}.md").read_text("utf-8")
    kept = set(CODE.findall(text))
    assert {one for one in CODE.findall(english) if one.isascii()} - kept == set()


def test_the_front_end_finds_them(comfy: Any) -> None:
    info = comfy.get("/object_info")
    folder = info["LorakitLoadLora"]["python_module"].removeprefix("custom_nodes.")
    for path in TRANSLATED:
        where = f"extensions/{folder}/docs/{path.relative_to(PAGES).as_posix()}"
        with urllib.request.urlopen(comfy.address + where, timeout=30) as answer:
            assert answer.read().decode() == path.read_text("utf-8")


def test_a_page_with_another_tooltip_is_found(tmp_path: Path) -> None:
    path = TRANSLATED[0]
    (tmp_path / path.parent.name).mkdir()
    copy = tmp_path / path.parent.name / path.name
    copy.write_text(path.read_text("utf-8").replace("*MODEL*", "*CLIP*"), "utf-8")
    assert copy.read_text("utf-8") != path.read_text("utf-8") == filled(copy)
