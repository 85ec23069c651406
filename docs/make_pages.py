"""Writes the tables of the translated help pages, `web/docs/NODE/LANGUAGE.md`: run after a change of texts.

A row is that of the English page, in the words that `locales/` has for the input: what a node shows
and what its page says are one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "web" / "docs"
#: The title of the section with the table, and the head of that.
HEADS = {
    "zh": ("## 输入", "| 输入 | 说明 | 取值 |"),
    "ja": ("## 入力", "| 入力 | 説明 | 値 |"),
}
_NUMBER = r"(-?[\d.e+-]+)"
#: What stands beside a name or as its values, where that is no choice: those read the same everywhere.
_WORDS = {
    "zh": {
        r"\(optional\)": "（可选）",
        r"\((?:of )?(.*)\)": r"（用于 \1）",
        rf"{_NUMBER} to {_NUMBER}, default {_NUMBER}": r"\1 到 \2，默认 \3",
        r"([A-Z_]+), (\d+) to (\d+)": r"\1，\2 到 \3 个",
        r"([A-Z_]+), up to (\d+)": r"\1，最多 \2 个",
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
        r"([A-Z_]+), (\d+) to (\d+)": r"\1、\2 から \3 個",
        r"([A-Z_]+), up to (\d+)": r"\1、\2 個まで",
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


def filled(page: Path) -> str:
    """The text of a translated page, with its table as it should be."""
    node, language = page.parent.name, page.stem
    entry = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))[node]
    title, head = HEADS[language]
    before, _, rest = page.read_text("utf-8").partition(f"\n{title}\n")
    after = rest[rest.index("\n## ") :]
    rows = list(_rows(PAGES / f"{node}.md", entry["inputs"], _WORDS[language]))
    table = "\n".join([head, "|---|---|---|", *rows])
    return f"{before}\n{title}\n\n{table}\n{after}"


def _rows(
    english: Path, inputs: Mapping[str, Mapping[str, Any]], words: Mapping[str, str]
) -> Iterator[str]:
    for line in english.read_text("utf-8").splitlines():
        if line.startswith("| `"):
            name, _, values = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            bare, of = re.fullmatch(r"`(.*)` ?(.*)", name).groups()  # type: ignore[union-attr]
            texts = next(
                inputs[one] for one in (bare, f"method_{bare}", f"model_{bare}") if one in inputs
            )
            told = re.sub(r"([|*])", r"\\\1", texts["tooltip"])
            of = _worded(of, words)
            yield f"| {texts['name']} `{bare}`{of} | {told} | {_worded(values, words)} |"


def _worded(text: str, words: Mapping[str, str]) -> str:
    for pattern, there in words.items():
        if found := re.fullmatch(pattern, text):
            return found.expand(there)
    return text


if __name__ == "__main__":
    for each in translated():
        each.write_text(filled(each), "utf-8")
