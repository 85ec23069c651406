"""Merges in a line: what they mean is the sum that Python finds for the same text."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.operations.merge.recipes.arithmetic import parse_amount
from lorakit.lora_ops.operations.merge.recipes.document import as_toml, parse_document
from lorakit.lora_ops.operations.merge.recipes.expression import (
    as_expression,
    parse_expression,
    parse_line,
    parse_terms,
)
from lorakit.lora_ops.operations.merge.recipes.recipe import Recipe, Term

NAMES = {"A": 3.25, "B": -1.5, "C": 7.0, "D": 0.625}


def value(recipe: Recipe, names: dict[str, float] = NAMES) -> float:
    """What a step of linear terms is, where each model is a number."""
    (step,) = recipe.steps
    base = names[step.base] if step.base else 0.0
    total = base
    for term in step.terms:
        less = names[term.minus] if term.minus else (base if term.of not in "LM" else 0.0)
        total += term.weight * (names[term.of] - less)
    return total


@pytest.mark.parametrize(
    "text",
    [
        "A + 0.35*(B - C)",
        "0.7*A + 0.3*B",
        "A/2 + B/2",
        "A + B - C",
        "A - C + B",
        "-(C - A)/2 + B",
        "2*A - B",
        "(A + B + C + D)/4",
        "A + .5*(B - A) + 1e-1*(C - D)",
        "0.5*(0.5*A + 0.5*B) + 0.5*(C + 2*(A - B))",
        "B - C",
        "2*(A - B) - 3*(C - D)",
        "--A",
        "A*0.25 + B*(1 - 0.25)",
    ],
)
def test_an_expression_is_its_value(text):
    wanted = eval(text, dict(NAMES))
    recipe = parse_expression(text)
    assert value(recipe) == pytest.approx(wanted)
    assert value(parse_expression(as_expression(recipe))) == pytest.approx(wanted)
    assert parse_document(as_toml(recipe)) == recipe


_NUMBERS = st.floats(-3, 3).map(lambda x: round(x, 3))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_NUMBERS, st.sampled_from("BCD"), st.sampled_from("ABCD")), max_size=5))
def test_any_change_of_a_base_is_its_value(parts):
    text = "A" + "".join(f" + ({factor})*({of} - {minus})" for factor, of, minus in parts)
    recipe = parse_expression(text)
    wanted = eval(text, dict(NAMES))
    assert value(recipe) == pytest.approx(wanted, abs=1e-9)
    again = as_expression(recipe)
    assert value(parse_expression(again)) == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(_NUMBERS, _NUMBERS)
def test_names_of_numbers_are_numbers(a, b):
    text = "(1 - $b)*((1 - $a)*A + $a*B) + $b*C"
    recipe = parse_expression(text).bind({"a": a, "b": b})
    wanted = eval(text.replace("$", ""), {**NAMES, "a": a, "b": b})
    assert value(recipe) == pytest.approx(wanted, abs=1e-9)


def test_the_forms_that_people_write():
    (step,) = parse_line("A + 0.35*(B − C)").steps  # noqa: RUF001  a minus as pages print it
    assert (step.base, step.terms) == ("A", (Term("B", "C", 0.35),))
    (step,) = parse_line("0.7*A + 0.3*B").steps
    assert (step.base, step.method, step.terms) == ("A", "lerp", (Term("B", weight=0.3),))
    (step,) = parse_line("A:0.7 B:$b:OUTALL").steps
    assert (step.base, step.method) == ("", "average")
    assert step.terms == (Term("A", weight=0.7), Term("B", weight="$b", blocks="OUTALL"))
    (step,) = parse_line("A:1:IN04=0.5,OUT=0:te=0;attn2=0.5").steps
    assert step.terms[0] == Term("A", blocks="IN04=0.5,OUT=0", where=("te=0", "attn2=0.5"))
    (step,) = parse_terms(["B:0.4"], base="A").steps
    assert (step.base, step.method, step.terms) == ("A", "sum", (Term("B", weight=0.4),))
    (step,) = parse_line('"my mix-2" + 0.5*(B.safetensors - C)').steps
    assert (step.base, step.terms[0].of) == ("my mix-2", "B.safetensors")


def test_loras_are_changes():
    names = {**NAMES, "L": 0.5, "M": 4.0}
    for text in ("A + 0.4*L", "A - L + 2*M", "0.5*A + 0.5*B + 0.3*(L - M)", "0.5*L - M"):
        recipe = parse_expression(text, deltas=("L", "M"))
        assert value(recipe, names) == pytest.approx(eval(text, dict(names)))
        assert recipe.files["L"].kind == "lora"
    assert parse_expression("L - A + B", deltas=("L",)).steps[0].base == ""


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("A B", 3, "one of `+ - * /` is missing"),
        ("A +", 4, "a model or a number is missing"),
        ("(A + B", 7, "a `)` is missing"),
        ("A)", 2, "nothing can stand here"),
        ("A*B", 2, "two models cannot be multiplied"),
        ("A + 0.3*(B*C)", 11, "two models cannot be multiplied"),
        ("A/B", 2, "only a number other than 0 divides"),
        ("A/0", 2, "only a number other than 0 divides"),
        ("0.5*A + 3x", 9, "`3x` means nothing"),
        ("A + 0.3%*B", 8, "`%*B` means nothing"),
        ("A + \x1b[31m", 5, "means nothing"),
        ("", 1, "a model or a number is missing"),
        ("A + 1e999*B", 5, "is too large"),
        ("(" * 100 + "A" + ")" * 100, 65, "more than 64 levels"),
        ('A + "', 5, "means nothing"),
        ("$ + A", 1, "means nothing"),
    ],
)  # fmt: skip
def test_faults_are_shown_below_the_place(text, column, words):
    with pytest.raises(ArgumentError) as caught:
        parse_expression(text)
    first, shown, mark = str(caught.value).split("\n")
    assert words in first
    assert f"at column {column}" in first
    if text.isprintable():
        assert mark.index("^") == column - 1 + 2
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.7*A + 0.4*B", "add up to 1.1, not to 1"),
        ("A + B", "add up to 2"),
        ("0.7*A + $b*B", r"add up to 0.7 \+ \$b"),
        ("A + 0.4*L", "say which names are LoRAs"),
        ("A + 2", "the number 2 stands alone"),
        ("A - A", "nothing of any model is left"),
        ("+".join(["A"] * 300), "more than 256 addends"),
        ("*".join([f"({'+'.join(f'${c}{n}' for n in range(9))})" for c in "abcd"]) + "*A", "too many products"),
        ("A" * 10_001, "10000 is the most"),
    ],
)  # fmt: skip
def test_sums_that_are_never_meant_are_refused(text, words):
    with pytest.raises(ArgumentError, match=words):
        parse_expression(text)


@pytest.mark.parametrize("text", ["A:x", "A:nan", "A:inf", ":1", "A:1e999", "A:B", "A:"])
def test_terms_that_say_nothing_are_refused(text):
    with pytest.raises(ArgumentError, match=re.escape(f"`{text}`")):
        parse_terms([text])


@settings(max_examples=200, deadline=None)
@given(st.text("AB$ab01.*+-/() \"'x", max_size=30))
def test_any_text_is_a_recipe_or_refused(text):
    recipe = None
    with contextlib.suppress(ArgumentError):
        recipe = parse_line(text)
    assert recipe is None or parse_document(as_toml(recipe)) == recipe


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(_NUMBERS, st.lists(st.sampled_from(["$a", "$b"]), max_size=3)), max_size=4)
)
def test_amounts_are_written_as_what_they_are(parts):
    text = "+".join("*".join([f"({factor})", *names]) for factor, names in parts) or "0"
    amount = parse_amount(text)
    wanted = eval(text.replace("$", ""), {"a": 1.5, "b": -0.25})
    for one in (amount, parse_amount(str(amount))):
        assert one.bound({"a": 1.5, "b": -0.25}) == pytest.approx(wanted, abs=1e-9)
