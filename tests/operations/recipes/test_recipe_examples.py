"""The documents in docs/recipes.md: each is a recipe, and says what the text above it says."""

from __future__ import annotations

import re

import pytest
from commands import ROOT
from recipes import METHODS

from lorakit.lora_ops.operations.merge.recipes.checks import check
from lorakit.lora_ops.operations.merge.recipes.document import as_json, as_toml, parse_checked
from lorakit.lora_ops.operations.merge.recipes.expression import parse_line
from lorakit.lora_ops.operations.merge.recipes.recipe import Output, Term

PAGE = (ROOT / "docs" / "recipes.md").read_text("utf-8")
DOCUMENTS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
FIRST, BLOCKS, DIFFERENCE, TIES, FLUX, LORA, LEGACY = range(7)


def read(index):
    return parse_checked(DOCUMENTS[index], METHODS)


@pytest.mark.parametrize("index", range(7))
def test_every_document_of_the_page_is_a_recipe(index):
    recipe = read(index)
    assert parse_checked(as_toml(recipe), METHODS) == recipe
    assert parse_checked(as_json(recipe), METHODS) == recipe


def test_there_are_no_others():
    assert len(DOCUMENTS) == 7


def test_what_the_examples_mean():
    assert read(FIRST).title == "a mix"
    (step,) = read(BLOCKS).steps
    assert (step.base, step.method, len(step.terms[0].blocks.split(","))) == ("A", "lerp", 20)
    recipe = read(DIFFERENCE)
    assert recipe.steps[0].terms == (Term("B", "C", where=("te=0",)),)
    assert (recipe.parts, recipe.output.keep) == ({"vae": "V"}, "on")
    first, second = read(TIES).steps
    assert (first.sparsify, first.seed, first.parameters) == ("dare", 7, {"density": 0.5})
    assert (second.base, [term.of for term in second.terms]) == (
        "step1",
        ["style.safetensors", "hands.safetensors"],
    )
    assert read(FLUX).output == Output({"all": "bf16"}, rounding="stochastic")
    recipe = read(LORA)
    assert check(recipe, kinds=dict.fromkeys(["l2", "l3"], "lora")) == {"step1": "delta"}
    assert (recipe.output.kind, recipe.output.rank) == ("lora", 32)
    assert read(LEGACY).steps[0].terms[0].elemental.endswith(":0.5")


def test_every_line_of_the_page_is_one():
    table = PAGE.partition("## In a line")[2].partition("## Six")[0]
    lines = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        assert len(parse_line(line).steps) == 1
