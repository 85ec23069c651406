"""A recipe from text that somebody pastes: a line, a document, or what another program writes."""

from __future__ import annotations

import re
from collections.abc import Collection

from ....errors import ArgumentError
from .document import parse_document
from .expression import parse_line
from .foreign import Foreign, of_text
from .foreign.mms import is_plan

_DOCUMENT = re.compile(
    r'\s*\{\s*"lorakit"\s*:|^\s*(?:lorakit\s*=|\[\[?\s*(?:files|step|parts|output)\b)', re.MULTILINE
)


def parse_pasted(text: str, *, deltas: Collection[str] = ()) -> Foreign:
    """Read a recipe from text, told by what is in it.

    Args:
        text: A line as `parse_line` reads it, a document in TOML or JSON, or the text of any file that
            `foreign.read_foreign` takes.
        deltas: Of a line, the names that are changes, such as LoRAs, not whole models.

    Raises:
        ArgumentError: There is no text, or it means nothing.
        FormatError: It is longer than a line, and nothing that is known.
    """
    text = text.strip()
    if not text:
        raise ArgumentError(
            "the recipe is empty; write a line, as in `A + 0.3*(B - A)`, or paste a recipe"
        )
    if _DOCUMENT.search(text):
        return Foreign("lorakit", parse_document(text))
    if len(text.splitlines()) == 1 and not text.startswith("{") and not is_plan(text):
        return Foreign("lorakit", parse_line(text, deltas=deltas))
    return of_text(text)
