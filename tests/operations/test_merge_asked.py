"""What a merge is asked for and cannot do: weights out of range, methods by the wrong name."""

from __future__ import annotations

import pytest
import torch
from checkpoints import SD1, grid, trained

from lorakit.lora_ops import DictSource, merge, parse_line
from lorakit.lora_ops.adapters.strengths.rules import strengths
from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.operations.merge.recipes.recipe import Recipe, RecipeFile, Step, Term
from lorakit.lora_ops.operations.methods.choosing import check_legacy, choose_method

BASE = grid(SD1, torch.float16)
SOURCES = {"A": DictSource(BASE, name="a"), "B": DictSource(trained(BASE), name="b")}
FILES = {name: RecipeFile(f"{name}.safetensors") for name in SOURCES}


def recipe(method: str = "sum", **term: object) -> Recipe:
    return Recipe((Step("m", (Term("B", **term),), method, "A"),), FILES)


# --- Weights that float32 cannot hold -------------------------------------------------------------


@pytest.mark.parametrize("weight", [1e39, -1e39, 3.5e38, 1e300])
def test_a_weight_out_of_range_is_told_with_its_value(weight):
    with pytest.raises(
        ArgumentError, match=r"strength of .* out of the range of float32"
    ) as caught:
        merge(recipe(weight=weight), SOURCES)
    assert f"{weight:g}" in str(caught.value)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    "term",
    [
        {"weight": (1e39, 1e39)},
        {"where": ("*to_q*=1e39",)},
        {"weight": 1e30, "where": ("*to_q*=1e30",)},
        {"weight": 1e30, "blocks": "IN01=1e30"},
    ],
)
def test_a_product_of_factors_too(term):
    with pytest.raises(ArgumentError, match="out of the range of float32"):
        merge(recipe(**term), SOURCES)


def test_the_largest_number_of_float32_is_in_range():
    assert strengths(["a"], strength=3.4028234663852886e38) == {"a": 3.4028234663852886e38}
    with pytest.raises(ArgumentError, match=r"of 3\.40282e"):
        strengths(["a"], strength=3.4028235e38)


def test_a_number_of_a_line_too():
    with pytest.raises(ArgumentError, match=r"1e\+39"):
        merge(parse_line("A + 1e39*(B - A)", FILES), SOURCES)


@pytest.mark.parametrize("weight", [-2000.0, 2000.0])
def test_a_sigmoid_of_a_large_weight_ends_at_its_limits(weight):
    chosen = choose_method("sigmoid", 1, True)
    found = chosen.method.how.solve((weight,), True)
    assert (found.base, *found.terms) == ((0.0, 1.0) if weight > 0 else (0.0, 0.0))


# --- Methods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TIES", "Ties", "tise", "DARE_TIES", "dares"])
def test_the_nearest_method_is_named_whatever_the_case(name):
    with pytest.raises(ArgumentError, match=r"did you mean `(ties|dare|dare_ties)`\?"):
        merge(recipe(name), SOURCES)


@pytest.mark.parametrize(
    ("name", "legacy"), [("slerp", "mecha"), ("lerp", "supermerger"), ("tensor_sum", "mergekit")]
)
def test_another_programs_meaning_that_a_method_lacks(name, legacy):
    with pytest.raises(ArgumentError) as caught:
        check_legacy(name, legacy)
    for word in (name, legacy, "ties (mergekit, mecha, chattiori)", "cosine_a (mecha)"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "legacy", "sparsify"),
    [
        ("ties", "mecha", "none"),
        ("dare", "chattiori", "none"),
        ("sum", "mergekit", "dare"),
        ("slerp", "no", "none"),
    ],
)
def test_another_programs_meaning_that_it_has(name, legacy, sparsify):
    check_legacy(name, legacy, sparsify)
    parameters = {} if sparsify == "none" else {"sparsify": sparsify}
    if legacy != "no":
        name = "sparse" if name == "sum" else name
        chosen = choose_method(name, 2, True, parameters | {"legacy": legacy})
        assert chosen.parameters["legacy"] == legacy
