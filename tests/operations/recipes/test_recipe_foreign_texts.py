"""Recipes of other programs in files of their own: plans, sd-mecha's and mergekit's."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import FOREIGN, read_or_refused

from lorakit.lora_ops.adapters.strengths.rules import strengths
from lorakit.lora_ops.errors import ArgumentError, FormatError
from lorakit.lora_ops.operations.merge.recipes.foreign import (
    of_metadata,
    of_text,
)
from lorakit.lora_ops.operations.merge.recipes.recipe import RecipeFile, Term

PLAN = """+DHP, https://civitai.com/models/436585/dhxl
+ST, https://civitai.com/models/1, %LR

CM DHP + MKF +S SXL 0.2 0.3 _A
-DHP
// what comes next
CM ALP + HYB +T MAG 0.35 0.25 _B
CM _A +D _B 0.4 _C
CM _C + X - Y 1 _D
LB _D ST:0.5,Z:-0.3 _E
PR _E Nova
CM Nova + _B "0,1,1,1,1,0.3,0.2,0,0,0,0,0,0,0,0,0,0,0,0,0,0.4,1,1,1,1,1" Final
"""


def test_plans():
    found = of_text(PLAN)
    got = [
        (one.base and found.recipe.files.get(one.base, RecipeFile(one.base)).name, one.sparsify)
        for one in found.recipe.steps
    ]
    assert got == [
        ("DHP.safetensors", "none"),
        ("step1", "none"),
        ("ALP.safetensors", "none"),
        ("step2", "dare"),
        ("step4", "none"),
        ("step5", "none"),
        ("step6", "none"),
    ]
    assert found.recipe.files["A"].url == "https://civitai.com/models/436585/dhxl"
    kinds = {file.name: file.kind for file in found.recipe.files.values()}
    assert (kinds["ST.safetensors"], kinds["Z.safetensors"], kinds["X.safetensors"]) == (
        "lora",
        "lora",
        "",
    )
    assert found.recipe.steps[3].terms[0].blocks == ",".join(["0"] + ["0.4"] * 25)
    assert [term.weight for term in found.recipe.steps[5].terms] == [0.5, -0.3]
    assert found.recipe.steps[6].terms[0].of == "step3"
    assert found.recipe.title == "Final"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("CM A + B C", "line 1 of the plan is `CM A"),
        ("CM A + B +S C 0.3 R", "1 ratios in place of 2"),
        ("CM A + B x R", "a ratio as `x`"),
        ("LB A B:x R", "the weight of `B` as `x`"),
        ("LB A B:1", "line 1 of the plan is `LB A B:1`"),
    ],
)  # fmt: skip
def test_plans_that_say_nothing(line, words):
    with pytest.raises(FormatError, match=words):
        of_text(line)


def test_mecha():
    mecha = {name: of_text(text).recipe for name, text in FOREIGN["mecha"].items()}
    assert mecha["weighted_sum"].steps[0].terms == (Term("B", weight=0.3),)
    assert [file.name for file in mecha["weighted_sum"].files.values()] == [
        "noob.safetensors",
        "mix.safetensors",
    ]
    assert mecha["add_difference3"].steps[0].terms == (Term("B", "C", 0.35),)
    assert mecha["n_average"].steps[0].method == "average"
    assert mecha["n_average"].steps[0].terms == (Term("A"), Term("B"), Term("C"))
    assert mecha["blocks"].steps[0].terms == (Term("B", blocks="BASE=0.1,IN04=0.5"),)
    assert [(one.base, one.terms[0].weight) for one in mecha["nested"].steps] == [
        ("A", 0.5),
        ("step1", 0.25),
    ]
    assert of_metadata({"mecha_recipe": FOREIGN["mecha"]["nested"]}).recipe == mecha["nested"]
    with pytest.raises(
        FormatError, match=r"line 8, .*method `rotate` is not of those that are read"
    ):
        of_text(FOREIGN["mecha"]["weighted_sum"] + '\nmerge "rotate" &0 &1')


def test_mergekit():
    pytest.importorskip("yaml", reason="PyYAML reads mergekit's configuration")
    found = {name: of_text(text) for name, text in FOREIGN["mergekit"].items()}
    (step,) = found["linear"].recipe.steps
    assert (step.method, [term.weight for term in step.terms]) == ("average", [1.0, 0.3])
    assert found["linear"].recipe.files["A"].url == "https://huggingface.co/org/one"
    assert any("revision `main`" in one for one in found["linear"].lost)
    (step,) = found["dare_ties"].recipe.steps
    assert (step.method, step.sparsify, step.base, step.legacy) == ("ties", "dare", "A", "mergekit")
    assert step.parameters == {"lambda": 0.9, "normalize": True}
    assert step.terms[0] == Term("B", parameters={"density": (1.0, 0.7, 0.1)})
    assert step.terms[1] == Term("C", weight=(0.0, 0.3, 0.7, 1.0), parameters={"density": 0.33})
    assert any("tokenizer_source" in one for one in found["dare_ties"].lost)
    (step,) = found["slerp"].recipe.steps
    assert ([term.of for term in step.terms], step.base) == (["A", "B"], "")
    assert step.parameters == {"t": (0.0, 0.5, 1.0)}
    assert any("a/lora" in one for one in found["stock"].lost)


def test_mergekit_takes_the_first_filter_that_fits_and_so_do_we():
    pytest.importorskip("yaml", reason="PyYAML reads mergekit's configuration")
    (term,) = of_text(FOREIGN["mergekit"]["filters"]).recipe.steps[0].terms
    theirs = FOREIGN["mergekit_filtered"]
    assert strengths(list(theirs), where=term.where) == pytest.approx(theirs)


def test_without_yaml_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ArgumentError, match="needs the package `pyyaml`"):
        of_text(FOREIGN["mergekit"]["linear"])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(
        [*FOREIGN["mecha"].values(), PLAN, FOREIGN["history"], json.dumps(FOREIGN["records"]["mm"])]
    ),
    st.data(),
)
def test_damaged_texts_are_refused_or_read(text, data):
    at = data.draw(st.integers(0, len(text) - 1))
    cut = data.draw(st.integers(0, 12))
    text = text[:at] + data.draw(st.text('&"0123 .:,\n+-=x', max_size=6)) + text[at + cut :]
    read_or_refused(lambda: of_text(text))
