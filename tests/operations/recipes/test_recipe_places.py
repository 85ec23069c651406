"""Methods of a document, and what they are given: what there is not is told with its line, once it is planned."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from checkpoints import SD1, grid, trained

from lorakit.lora_ops import DictSource, Recipe, merge
from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.operations.merge.recipes.document import parse_document

BASE = grid(SD1, torch.float16)
SOURCES = {"A": DictSource(BASE, name="a"), "B": DictSource(trained(BASE), name="b")}
TEXT = """lorakit = 1

[files]
A = {name = "a.safetensors"}
B = {name = "b.safetensors"}

[[step]]
name = "first"
method = "lerp"
base = "A"
terms = [{of = "B"}]

[[step]]
method = "ties"
base = "first"
density = 0.5
terms = [
  {of = "A"},
  {of = "B", density = 0.1},
]
"""


def refused(recipe: Recipe) -> str:
    with pytest.raises(ArgumentError) as caught:
        merge(recipe, SOURCES)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"ties"', '"TIES"', ["unknown method `TIES`; did you mean `ties`? (line 14, `[[step]]` 2 `method`)"]),
        ('"lerp"', '"what"', ["unknown method `what`", "dare_ties", "(line 9, `[[step]]` 1 `method`)"]),
        ("density = 0.5", "densty = 1", ["`densty`; did you mean `density`? (line 16, `[[step]]` 2 `densty`)"]),
        ('base = "A"', 'base = "A"\nscope = "core"', ["no parameter `scope`; it takes none", "(line 11, `[[step]]` 1 `scope`)"]),
        ("density = 0.5", "density = 5", ["from 0 to 1", "(line 16, `[[step]]` 2 `density`)"]),
        ('base = "A"', 'base = "A"\nt = 0.5', ["`lerp`", "it takes none (line 11, `[[step]]` 1 `t`)"]),
        ('{of = "B"}]', '{of = "B"}, {of = "A"}]', ["takes 1 models", "(line 9, `[[step]]` 1 `method`)"]),
    ],
)  # fmt: skip
def test_with_its_line(old, new, words):
    text = TEXT.replace(", density = 0.1", "")
    assert old in text
    recipe = parse_document(text.replace(old, new, 1))
    for one in (recipe, pickle.loads(pickle.dumps(recipe))):
        told = refused(one)
        assert [word for word in words if word not in told] == []


def test_a_parameter_of_a_term_has_the_terms_line():
    text = TEXT.replace('{of = "A"}', '{of = "A", gama = 1}').replace("density = 0.1", "gama = 1")
    assert "`gama`; did you mean `gamma`? (line 18, `[[step]]` 2 `terms` 1 `gama`)" in refused(
        parse_document(text)
    )


def test_json_has_no_lines_and_a_line_no_place():
    step = {"method": "sum", "strenght": 1, "base": "A", "terms": [{"of": "B"}]}
    files = {name: {"name": f"{name}.safetensors"} for name in "AB"}
    recipe = parse_document(json.dumps({"lorakit": 1, "files": files, "step": [step]}))
    assert refused(recipe).endswith("did you mean `strength`? (`[[step]]` 1 `strenght`)")
