"""Recipes as TOML and JSON: what is written reads back as the same; what means nothing is told, with its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import METHODS, recipes

from lorakit.lora_ops.errors import ArgumentError, LoraOpsError
from lorakit.lora_ops.operations.merge.recipes.document import (
    as_json,
    as_toml,
    from_tree,
    parse_checked,
    parse_document,
    read_recipe,
)
from lorakit.lora_ops.operations.merge.recipes.recipe import Recipe, RecipeFile, Step, Term

GOOD = """lorakit = 1
title = "a mix"

[files.A]
name = "a.safetensors"

[files.B]
name = "b.safetensors"
kind = "checkpoint"

[[step]]
name = "first"
method = "lerp"
base = "A"
terms = [{of = "B", weight = "$a", blocks = "OUTALL"}]

[[step]]
name = "second"
method = "ties"
base = "A"
density = 0.5
terms = [{of = "first", weight = [0, 0.5, 1]}, {of = "B", minus = "A", where = ["te=0"]}]

[output]
dtype = {all = "fp16", vae = "fp32"}
"""


@settings(max_examples=150, deadline=None)
@given(recipes())
def test_both_forms_read_back_as_the_same(recipe):
    assert parse_document(as_toml(recipe)) == recipe
    assert parse_document(as_json(recipe)) == recipe


@settings(max_examples=50, deadline=None)
@given(recipes())
def test_the_text_is_the_same_each_time(recipe):
    assert as_toml(parse_document(as_toml(recipe))) == as_toml(recipe)


def test_what_a_person_writes_is_what_is_written():
    recipe = parse_checked(GOOD, METHODS)
    assert as_toml(recipe) == GOOD
    assert recipe.steps[1].terms[0].weight == (0.0, 0.5, 1.0)
    assert recipe.steps[1].parameters == {"density": 0.5}
    assert recipe.output.dtype == {"all": "fp16", "vae": "fp32"}


def test_json_has_what_was_measured_and_toml_has_not():
    step = Step("s", (Term("B"),), base="A", measured={"changed": 5.0, "gain": 0.25})
    files = {"A": RecipeFile("a.safetensors", bytes=10), "B": RecipeFile("b.safetensors")}
    recipe = Recipe((step,), files)
    read = parse_document(as_json(recipe))
    assert read.steps[0].measured == {"changed": 5.0, "gain": 0.25}
    assert read.files["A"].bytes == 10
    assert "measured" not in as_toml(recipe)
    assert "bytes" not in as_toml(recipe)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lorakit = 1", "lorakit = 2", ["line 1", "`lorakit`", "`2`", "update lorakit"]),
        ("lorakit = 1", 'lorakit = "1"', ["line 1", "not a whole number"]),
        ("lorakit = 1\n", "", ["begin it with `lorakit = 1`"]),
        ("title", "titel", ["line 2", "`titel`", "nearest: `title`"]),
        ('kind = "ch', 'knid = "ch', ["line 9", "`files` `B` `knid`", "nearest: `kind`"]),
        ('"checkpoint"', '"chekpoint"', ["file `B`", "`chekpoint`", "checkpoint or lora"]),
        ("dtype =", "dtpye =", ["line 25", "`output` `dtpye`", "nearest: `dtype`"]),
        ("method = \"ties", "metod = \"ties", ["line 19", "`[[step]]` 2 `metod`", "`method`"]),
        ("weight = \"$a\"", "wieght = 1", ["line 15", "terms` 1 `wieght`", "nearest: `weight`"]),
        ("weight = \"$a\"", 'weight = "much"', ["line 15", "`much`", "not a number"]),
        ("weight = \"$a\"", "weight = nan", ["line 15", "`nan`", "not a finite number"]),
        ("weight = \"$a\"", "weight = []", ["line 15", "a list of 0", "1 to"]),
        ("weight = \"$a\"", 'weight = "$a*"', ["step `first`, term 1: weight", "is missing at column 4"]),
        ("base = \"A\"\nterms = [{of = \"B\"", "base = \"A\"\nterms = [{of = \"C\"", ["`C`", "neither a file nor a step"]),
        ('of = "first"', 'of = "frist"', ["step `second`", "nearest: `first`"]),
        ('of = "B", weight', 'of = "second", weight', ["not yet there", "earlier steps"]),
        ('name = "second"', 'name = "first"', ["step `first`", "the name is taken"]),
        ('name = "second"', 'name = "A"', ["step `A`", "the name is taken"]),
        ('"ties"', '"tise"', ["step `second`", "unknown method `tise`", "nearest: `ties`"]),
        ("density", "densty", ["step `second`", "no parameter `densty`", "nearest: `density`"]),
        ("density = 0.5", "density = 1.5", ["density is 1.5", "a number from 0 to 1"]),
        ('"a.safetensors"', '"/models/a.safetensors"', ["file `A`", "is a path", "SHA-256"]),
        ('"a.safetensors"', '"..\\\\a"', ["file `A`", "is a path"]),
        ('"a.safetensors"', '"a"\nsha256 = "123"', ["file `A`", "`123` is not 64 digits"]),
        ('vae = "fp32"', 'vae = "fp31"', ["dtype of `vae`", "`fp31`", "fp32"]),
        ('vae = "fp32"', 'vea = "fp32"', ["`vea`", "unet"]),
        ("[output]", '[output]\nrank = 4', ["`rank` is of a LoRA"]),
        ("[output]", "[parts]\nunet = \"C\"\n[output]", ["parts", "`C`", "neither"]),
        ("[[step]]\nname = \"first\"", "[[step]\nname = \"first\"", ["no TOML", "line 11"]),
        ('title = "a mix"', 'title = "a\\u0000"\nterms = 1', ["`terms`", "no key of this table"]),
        ('name = "first"', 'name = "a\\u001bb"', ["cannot name a step", "printable"]),
        ("blocks", "elemental", ["`elemental`", "`legacy`"]),
    ],
)  # fmt: skip
def test_what_means_nothing_is_told_with_its_place(old, new, words):
    assert old in GOOD
    with pytest.raises(ArgumentError) as caught:
        parse_checked(GOOD.replace(old, new, 1), METHODS)
    assert [word for word in words if word not in str(caught.value)] == []
    assert str(caught.value).splitlines()[0].isprintable()


WHOLE_AND_CHANGE = """lorakit = 1
files.A.name = "a.safetensors"
files.L = {name = "l.safetensors", kind = "lora"}
files.M = {name = "m.safetensors", kind = "checkpoint"}
[[step]]
terms = [{of = "M"}, {of = "L", weight = 0.5}]
"""


def test_changes_and_whole_models_need_a_base():
    with pytest.raises(
        ArgumentError, match=r"adds `M`, a whole model, and `L`, a change.*base = \"M\""
    ):
        parse_document(WHOLE_AND_CHANGE)
    parse_document(WHOLE_AND_CHANGE.replace("terms", 'base = "A"\nterms'))
    with pytest.raises(ArgumentError, match="have no difference"):
        parse_document(WHOLE_AND_CHANGE.replace('{of = "M"}, {of = "L"', '{of = "M", minus = "L"'))
    with pytest.raises(ArgumentError, match=r"base `L` is a change and `M` a whole model"):
        parse_document(
            WHOLE_AND_CHANGE.replace('terms = [{of = "M"}, ', 'base = "L"\nterms = [{of = "M"}, ')
        )


def test_a_name_that_ends_like_a_file_is_one():
    recipe = parse_document('lorakit = 1\n[[step]]\nterms = [{of = "x.safetensors"}]\n')
    assert recipe.files == {"x.safetensors": RecipeFile("x.safetensors")}
    assert recipe.steps[0].name == "step1"


def test_numbers_are_bound_by_name():
    recipe = parse_document(GOOD.replace('"$a"', '"1 - $a*$b"'))
    assert recipe.values == ("a", "b")
    assert recipe.bind({"a": 0.5, "b": 0.4}).steps[0].terms[0].weight == 0.8
    with pytest.raises(ArgumentError, match="no value for `\\$b`"):
        recipe.bind({"a": 1})
    with pytest.raises(ArgumentError, match="has no `\\$aa`; nearest: `a`"):
        recipe.bind({"aa": 1})
    with pytest.raises(ArgumentError, match="not a finite number"):
        recipe.bind({"a": float("nan"), "b": 1})


HOSTILE = {
    "deep json": '{"a":' * 100_000,
    "deep toml": "a = " + "[" * 5000,
    "deep in a step": '{"lorakit":1,"step":' + "[" * 900 + "]" * 900 + "}",
    "a list": "[]",
    "numbers": '{"lorakit":1,"step":[{"terms":[{"of":1}]}]}',
    "huge": '{"lorakit":1,"step":[{"terms":[{"of":"a.pt","weight":1e999}]}]}',
    "very huge": '{"lorakit":1,"step":[{"terms":[{"of":"a.pt","weight":' + "9" * 400 + "}]}]}",
    "null": '{"lorakit":1,"step":null}',
    "table of steps": "lorakit = 1\n[step]\nbase = 1\n",
    "true": "lorakit = true\n",
    "many steps": json.dumps({"lorakit": 1, "step": [{"terms": [{"of": "a.pt"}]}] * 1001}),
    "long list": json.dumps(
        {"lorakit": 1, "step": [{"terms": [{"of": "a.pt", "weight": [0] * 5000}]}]}
    ),
    "long name": json.dumps({"lorakit": 1, "step": [{"terms": [{"of": "a" * 300 + ".pt"}]}]}),
    "twice": "lorakit = 1\nlorakit = 1\n",
    "control": "lorakit = 1\n\x00",
    "parameter": '{"lorakit":1,"step":[{"base":"a.pt","x":{"y":1}}]}',
    "key": '{"lorakit":1,"step":[{"base":"a.pt","\\u001b[31m":1}]}',
    "no step": "lorakit = 1\n",
    "too long": "lorakit = 1\n" + "#" * 4_000_001,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_refused(name):
    with pytest.raises(ArgumentError) as caught:
        parse_document(HOSTILE[name])
    text = str(caught.value)
    assert len(text) < 600
    assert text.replace("\n", "").isprintable()


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
_KEYS = st.sampled_from(["files", "step", "parts", "output", "title", "lorakit"])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(_KEYS, _ANY), _ANY)
def test_any_tree_is_a_recipe_or_refused(tree, inner):
    for one in (tree, inner, {**tree, "lorakit": 1, "step": [{"terms": [inner], "base": inner}]}):
        try:
            read = from_tree(one)
        except LoraOpsError:
            continue
        assert parse_document(as_toml(read)) == read


def test_files_of_recipes(tmp_path):
    path = tmp_path / "mix.toml"
    with pytest.raises(ArgumentError, match=r"mix\.toml: the recipe cannot be read"):
        read_recipe(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ArgumentError, match=r"mix\.toml: the recipe is no UTF-8"):
        read_recipe(path)
    path.write_text(GOOD.replace("kind", "knid"), "utf-8")
    with pytest.raises(ArgumentError, match=r"mix\.toml: line 9"):
        read_recipe(path)
    path.write_text(GOOD, "utf-8")
    assert read_recipe(path) == parse_document(GOOD)
