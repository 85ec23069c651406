"""Linear methods, the catalogue, and what may be asked of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.operations.methods import (
    ALIASES,
    MERGE_METHODS,
    METHODS,
    Choice,
    Element,
    Linear,
    PerTerm,
    Span,
    choose_method,
    weighed,
)

SHARES = st.floats(-2, 2).map(lambda x: round(x, 3))


def solve(name, weights, *, based=True, **parameters):
    chosen = choose_method(name, len(weights), based, parameters)
    assert isinstance(chosen.method.how, Linear)
    return chosen.method.how.solve(tuple(weights), based, **chosen.parameters)


def merged(name, base, terms, weights, **parameters):
    found = solve(name, weights, based=base is not None, **parameters)
    tensors = [torch.zeros_like(terms[0]) if base is None else base, *terms]
    return weighed([found.base, *found.terms], tensors, torch.empty_like(terms[0]))


def models(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 7, generator=generator) for _ in range(count)]


@settings(max_examples=50, deadline=None)
@given(SHARES, SHARES, st.integers(0, 1000))
def test_three_models(alpha, beta, seed):
    tensors = models(3, seed)
    a, b, c = (tensor.double() for tensor in tensors)
    by = math.exp
    formulas = {
        "sum": a + alpha * (b - a) + beta * (c - a),
        "task_arithmetic": a + alpha * (b - a) + beta * (c - a),
        "triple_sum": (1 - alpha - beta) * a + alpha * b + beta * c,
        "sum_twice": (1 - beta) * ((1 - alpha) * a + alpha * b) + beta * c,
        "add_difference": a + alpha * (b - c),
    }
    for name, meant in formulas.items():
        got = merged(name, tensors[0], tensors[1:], [alpha, beta])
        torch.testing.assert_close(got.double(), meant, rtol=1e-5, atol=1e-5)
    sigmoid = 1 / (1 + by(-4 * alpha)) * (a + b) - 1 / (1 + by(-alpha)) * a
    got = merged("sigmoid", tensors[0], tensors[1:2], [alpha])
    torch.testing.assert_close(got.double(), sigmoid, rtol=1e-5, atol=1e-5)
    if abs(alpha + beta) > 0.1:
        share = beta / (alpha + beta)
        got = merged("average", None, tensors[1:], [alpha, beta])
        meant = (1 - share) * b + share * c
        torch.testing.assert_close(got.double(), meant, rtol=1e-4, atol=1e-4)
        got = merged("average", tensors[0], tensors[1:], [alpha, beta], strength=0.5)
        meant = a + 0.5 * (meant - a)
        torch.testing.assert_close(got.double(), meant, rtol=1e-4, atol=1e-4)


LINEAR = [name for name, method in MERGE_METHODS.items() if isinstance(method.how, Linear)]


@pytest.mark.parametrize("name", [name for name in LINEAR if name not in ("average", "sigmoid")])
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_no_weight_gives_the_base_bit_for_bit(name, seed):
    count = MERGE_METHODS[name].terms[1] or 3
    base, *terms = models(1 + count, seed)
    base[0, 0] = -0.0
    got = merged(name, base, terms, [0.0] * count)
    assert got.view(torch.int32).equal(base.view(torch.int32))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["sum", "average", "lerp", "sum_twice", "triple_sum"]))
def test_one_at_weight_1_is_that_one_bit_for_bit(seed, name):
    base, b, c = models(3, seed)
    b[0, 0] = -0.0
    terms, weights = ([b, c], [1.0, 0.0]) if name != "lerp" else ([b], [1.0])
    assert merged(name, base, terms, weights).view(torch.int32).equal(b.view(torch.int32))
    if name in ("sum", "average"):
        assert merged(name, None, [b], [1.0]).view(torch.int32).equal(b.view(torch.int32))


def test_equal_numbers_stay_between_two():
    value = torch.full((100,), 0.1)
    for share in torch.linspace(0, 1, 33).tolist():
        assert merged("lerp", value, [value.clone()], [share]).equal(value)


def test_a_weight_of_zero_is_not_looked_at():
    bad = torch.full((5, 7), math.nan)
    (good,) = models(1)
    assert merged("sum", good, [bad], [0.0]).equal(good)


def test_weights_that_cancel_have_no_average():
    with pytest.raises(ArgumentError, match="add up to 0"):
        solve("average", [0.5, -0.5])


def test_choosing():
    ties = choose_method("dare_ties", 2, True, {"density": (0.3, 0.4)})
    assert ties.name == "ties"
    assert (ties.parameters["sparsify"], ties.parameters["density"]) == ("dare", (0.3, 0.4))
    assert choose_method("dare_ties", 2, True).parameters["density"] == 0.5
    assert choose_method("ties", 2, True).parameters["density"] == 0.2
    assert choose_method("cosine_a", 1, True).survey is not None


@pytest.mark.parametrize(
    ("name", "terms", "based", "parameters", "message"),
    [
        ("tise", 2, True, {}, "did you mean `ties`"),
        ("ties", 2, False, {}, "needs a base"),
        ("lerp", 2, True, {}, "takes 1 models beside the base, not 2"),
        ("slerp", 3, False, {}, "takes 2 models, not 3"),
        ("sce", 1, True, {}, "takes 2 or more models beside the base, not 1"),
        ("ties", 2, True, {"densty": 1}, "did you mean `density`"),
        ("ties", 2, True, {"density": 1.5}, "give a number from 0 to 1"),
        ("ties", 2, True, {"density": (0.1,)}, "has 1 numbers, and takes 2"),
        ("ties", 2, True, {"density": (0.1, 2.0)}, "give a number from 0 to 1"),
        ("ties", 2, True, {"strength": (0.1, 2.0)}, "has 2 numbers, and takes 1"),
        ("ties", 2, True, {"elect": "all"}, "one of sum, count"),
        ("ties", 2, True, {"density": "much"}, "give a number from 0 to 1"),
        ("karcher", 2, False, {"iterations": 1.5}, "give a whole number"),
    ],
)
def test_what_cannot_be(name, terms, based, parameters, message):
    with pytest.raises(ArgumentError, match=message):
        choose_method(name, terms, based, parameters)


def test_the_catalogue_is_whole():
    for name, (method, preset) in ALIASES.items():
        assert name not in MERGE_METHODS
        assert choose_method(name, 1 if method == "lerp" else 2, True, preset).name == method
    for name, method in MERGE_METHODS.items():
        if isinstance(method.how, Span):
            assert method.how.name in METHODS
            assert method.of == "changes"
        if isinstance(method.how, Linear):
            assert method.of == "weights"
        for parameter in method.parameters.values():
            assert parameter.help
            if isinstance(parameter, Choice):
                assert len(set(parameter.options)) == len(parameter.options) > 1
            elif isinstance(parameter, PerTerm):
                assert parameter.number.low <= parameter.default <= parameter.number.high
        terms = method.terms[0]
        choose_method(name, terms, method.base != "none")
        assert method.help
        assert isinstance(method.how, Linear | Span | Element)


def test_the_page_names_every_method_and_parameter():
    page = (Path(__file__).parents[2] / "docs" / "merging.md").read_text(encoding="utf-8")
    names = {*MERGE_METHODS, *ALIASES}
    for method in MERGE_METHODS.values():
        for name, parameter in method.parameters.items():
            if name not in ("iterations", "tolerance"):  # of the means, told where LoRAs are added
                names.add(name)
            if isinstance(parameter, Choice):
                names |= set(parameter.options) - {"sum", "count", "tensor", "row", "column"}
    missing = {name for name in names if f"`{name}`" not in page}
    assert not missing
