"""Text that somebody pastes: what it is is told by what is in it, and each reader gets its own."""

from __future__ import annotations

import pytest
from recipes import FOREIGN

from lorakit.lora_ops import ArgumentError, FormatError, as_toml, parse_document, parse_line
from lorakit.lora_ops.operations.merge.recipes.document import as_json
from lorakit.lora_ops.operations.merge.recipes.foreign import of_text
from lorakit.lora_ops.operations.merge.recipes.pasted import parse_pasted

LINE = "A + 0.35*(B - C)"
PLAN = "CM A + B 0.3 R"


@pytest.mark.parametrize("text", [LINE, f"\n  {LINE}\n", "A:0.7 B:0.3", "A:1 B:0.3:OUTALL"])
def test_a_line(text: str) -> None:
    found = parse_pasted(text)
    assert (found.program, found.lost) == ("lorakit", ())
    assert found.recipe == parse_line(text)


def test_a_line_with_changes() -> None:
    assert parse_pasted("A + 0.5*L", deltas={"L"}).recipe == parse_line("A + 0.5*L", deltas={"L"})
    with pytest.raises(ArgumentError, match=r"add up to 1\.5"):
        parse_pasted("A + 0.5*L")


def test_a_document_in_either_form() -> None:
    recipe = parse_line(LINE)
    for text in (as_toml(recipe), as_json(recipe), f"# mine\n{as_toml(recipe)}"):
        assert parse_pasted(text).recipe == parse_document(text) == recipe


def test_a_document_that_does_not_say_its_format_is_told_how() -> None:
    with pytest.raises(ArgumentError, match="begin it with `lorakit = 1`"):
        parse_pasted('[[step]]\nbase = "a.safetensors"')


@pytest.mark.parametrize("text", [PLAN, *FOREIGN["mecha"].values(), FOREIGN["history"]])
def test_other_programs(text: str) -> None:
    found = parse_pasted(text)
    assert found == of_text(text.strip())
    assert found.program != "lorakit"


def test_json_is_never_a_line() -> None:
    with pytest.raises(FormatError):
        parse_pasted('{"nodes": []}')


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_nothing(text: str) -> None:
    with pytest.raises(ArgumentError, match="the recipe is empty; write a line, as in"):
        parse_pasted(text)


def test_lines_of_nothing_known() -> None:
    with pytest.raises(FormatError, match="no program is known that writes a recipe like this"):
        parse_pasted("once upon\na time")
