"""Writes the inputs into the translated help pages, `web/docs/NODE/LANGUAGE.md`: run after a change of texts.

An item is that of the English page, in the words that `locales/` has for the input: what a node shows
and what its page says are one. Items and no table, as the front end's panel has room for one column.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "web" / "docs"
#: What the section with the inputs is called.
INPUTS = {"en": "## Inputs", "zh": "## 输入", "ja": "## 入力"}
#: An input of a page: its name, what stands beside that, what it is, and its values.
ITEM = re.compile(r"- (?:[^`]+ )?`([^`]+)`(?: ?([(（].*?[)）]))?[:：] ?(.*) \*((?:[^*\\]|\\.)+)\*")
_NUMBER = r"(-?[\d.e+-]+)"
#: What stands beside a name or as its values, where that is no choice: those read the same everywhere.
_WORDS = {
    "zh": {
        r"\(optional\)": "（可选）",
        r"\((?:of )?(.*)\)": r"（用于 \1）",
        rf"{_NUMBER} to {_NUMBER}, default {_NUMBER}": r"\1 到 \2，默认 \3",
        rf"{_NUMBER} to {_NUMBER}, default (.+) or {_NUMBER}": r"\1 到 \2，默认 \3 或 \4",
        r"([A-Z_]+), (\d+) to (\d+)": r"\1，\2 到 \3 个",
        r"([A-Z_]+), up to (\d+)": r"\1，最多 \2 个",
        "anything": "任意",
        "text": "文本",
        "text, a rule a line": "文本，每行一条规则",
        "text, default (`.*`)": r"文本，默认 \1",
        "text, as (`.*`)": r"文本，如 \1",
        "a file": "一个文件",
        "none, or a file": "none，或一个文件",
        "on or off": "开或关",
        "on or off, default off": "开或关，默认关",
    },
    "ja": {
        r"\(optional\)": "（省略可）",
        r"\((?:of )?(.*)\)": r"（\1 用）",
        rf"{_NUMBER} to {_NUMBER}, default {_NUMBER}": r"\1 から \2、既定 \3",
        rf"{_NUMBER} to {_NUMBER}, default (.+) or {_NUMBER}": r"\1 から \2、既定 \3 か \4",
        r"([A-Z_]+), (\d+) to (\d+)": r"\1、\2 から \3 個",
        r"([A-Z_]+), up to (\d+)": r"\1、\2 個まで",
        "anything": "任意",
        "text": "テキスト",
        "text, a rule a line": "テキスト、1 行に 1 規則",
        "text, default (`.*`)": r"テキスト、既定 \1",
        "text, as (`.*`)": r"テキスト、例 \1",
        "a file": "ファイル",
        "none, or a file": "none、またはファイル",
        "on or off": "オンまたはオフ",
        "on or off, default off": "オンまたはオフ、既定オフ",
    },
}


def translated() -> list[Path]:
    """The pages that are there in other languages."""
    return sorted(PAGES.glob("*/*.md"))


def items(text: str, language: str = "en") -> list[tuple[str, str, str, str]]:
    """(name, what stands beside it, what it is, values) of the inputs that a page has."""
    _, _, rest = text.partition(f"\n{INPUTS[language]}\n")
    lines = rest[: rest.index("\n## ")].split("\n")
    found = [ITEM.fullmatch(line) for line in lines]
    return [(one[1], one[2] or "", one[3], one[4]) for one in found if one]


def filled(page: Path) -> str:
    """The text of a translated page, with its inputs as they should be."""
    node, language = page.parent.name, page.stem
    entry = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))[node]
    before, title, rest = page.read_text("utf-8").partition(f"\n{INPUTS[language]}\n")
    after = rest[rest.index("\n## ") :]
    english = items((PAGES / f"{node}.md").read_text("utf-8"))
    lines = [_item(*one, entry["inputs"], _WORDS[language]) for one in english]
    return before + title + "\n" + "\n".join(lines) + "\n" + after


def _item(
    name: str,
    beside: str,
    _: str,
    values: str,
    inputs: Mapping[str, Mapping[str, str]],
    words: Mapping[str, str],
) -> str:
    texts = next(inputs[one] for one in (name, f"method_{name}", f"model_{name}") if one in inputs)
    told = texts["tooltip"].replace("*", r"\*")
    return f"- {texts['name']} `{name}`{_worded(beside, words)}：{told} *{_worded(values, words)}*"


def _worded(text: str, words: Mapping[str, str]) -> str:
    for pattern, there in words.items():
        if found := re.fullmatch(pattern, text):
            return found.expand(there)
    return text


if __name__ == "__main__":
    for each in translated():
        each.write_text(filled(each), "utf-8")
