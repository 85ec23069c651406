"""The nodes' texts in other languages, as locales/ has them."""

from __future__ import annotations

import json
import re
from typing import Any

from commands import ROOT

LANGUAGES = ("ja", "zh")
#: Letters that only the language has: a translation without one is English.
LETTERS = {"ja": re.compile("[\u3040-\u30ff\u4e00-\u9fff]"), "zh": re.compile("[\u4e00-\u9fff]")}


def translations(language: str) -> dict[str, Any]:
    """Titles, descriptions, inputs and outputs by node."""
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
