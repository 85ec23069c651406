"""Rank rules against loops written from their definitions, and the text they are written in."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.linalg.ranks.budgets import parse_rule
from lorakit.lora_ops.linalg.ranks.rules import RankRule, parse_rank

VALUES = {
    "energy": st.floats(0.01, 1),
    "fro": st.floats(0.01, 1),
    "error": st.floats(0.001, 1),
    "cumulative": st.floats(0.01, 1),
    "ratio": st.floats(1.01, 1000),
    "threshold": st.floats(1e-3, 100),
    "knee": st.just(0.0),
}
SPECTRA = st.lists(st.floats(1e-3, 100), min_size=1, max_size=40).map(
    lambda values: sorted(values, reverse=True)
)
RULES = st.one_of([st.tuples(st.just(name), values) for name, values in VALUES.items()])


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def total(values):
    return math.fsum(value * value for value in values)


def chosen(rule, values, known=None):
    """What the rule says of a spectrum of which the first `known` values are known."""
    known = len(values) if known is None else known
    return rule.choose(tensor(values[:known]), total(values), len(values))


def on_the_edge(name, value, s):
    """Whether a share or bound is met within rounding, where two correct sums may disagree."""
    around = (value * (1 - 1e-9), value * (1 + 1e-9))
    counts = {oracles.RULES[name](s, near) for near in (*around, value)}
    return len(counts) > 1


@given(SPECTRA, RULES)
@example([1.0] * 10, ("energy", 0.5))
@example([4.0, 2.0, 1.0], ("ratio", 2.0))
@example([4.0, 3.0, 0.0], ("fro", 0.8))
def test_each_rule_is_its_definition(s, rule):
    name, value = rule
    if name in {"knee", "error"}:
        s = [x + 1e-6 * (len(s) - i) for i, x in enumerate(s)]  # no ties, no cancelled tails
    if name not in {"knee"} and on_the_edge(name, value, s):
        return
    assert chosen(RankRule(name, value), s) == oracles.RULES[name](s, value)


@pytest.mark.parametrize(
    ("rule", "rank"),
    [
        ("energy=0.5", 1),  # 16 of 25.25
        ("energy=0.64", 2),
        ("fro=0.8", 2),  # 0.64 of the energy
        ("error=0.6", 2),  # 0.36 of it may go
        ("cumulative=0.5", 2),  # 4 of 9.5 is too little
        ("ratio=2", 2),
        ("ratio=8", 3),
        ("ratio=8.01", 4),
        ("threshold=1.9", 3 - 1),
        ("threshold=100", 1),  # a layer that changed keeps one
        ("knee", 3),
        ("2", 2),
        ("400", 4),
    ],
)
def test_rules_by_hand(rule, rank):
    assert chosen(parse_rank(rule), [4.0, 3.0, 0.5 + 0.5, 0.5]) == rank


@pytest.mark.parametrize("name", ["fro", "cumulative", "ratio"])
@given(s=SPECTRA.filter(lambda s: len(s) > 1), share=st.floats(0.05, 0.99))
def test_kohya_keeps_one_direction_more(name, s, share):
    """Ours is the smallest rank that reaches the share; theirs is that and one, up to all."""
    value = share * 100 + 1 if name == "ratio" else share
    if on_the_edge(name, value, s):
        return
    ours, theirs = chosen(RankRule(name, value), s), oracles.kohya(s, name, value)
    assert theirs == min(ours + 1, len(s))


@pytest.mark.parametrize("text", ["-3", "1e9", "2.5", "-0", "nan", "inf", "32,conv=-1", " -3 "])
def test_a_number_that_is_no_rank_is_told_what_one_is(text):
    for read in (parse_rank, parse_rule):
        with pytest.raises(ArgumentError, match="a rank is a whole number from 1 to 65536"):
            read(text)


def test_a_rank_beyond_all_weights_says_where_it_ends():
    with pytest.raises(ArgumentError, match="`rank=65537`: give a whole number from 1 to 65536"):
        parse_rank("65537")


@given(SPECTRA, RULES, st.integers(1, 50), st.integers(0, 50))
def test_limits(s, rule, least, more):
    name, value = rule
    free = chosen(RankRule(name, value), s)
    bound = chosen(RankRule(name, value, least=least, most=least + more), s)
    assert bound == min(max(free, least), least + more, len(s))


@given(SPECTRA, RULES, st.integers(1, 12), st.none() | st.integers(12, 40))
def test_a_rank_is_named_only_once_it_is_settled(s, rule, least, most):
    """Whatever the prefix that is known, the answer is the one of the whole spectrum, or none yet."""
    rule = RankRule(*rule, least=least, most=most)
    final = chosen(rule, s)
    answers = [chosen(rule, s, known) for known in range(1, len(s) + 1)]
    assert answers[-1] == final is not None
    assert {answer for answer in answers if answer is not None} == {final}
    settled = [known for known, answer in enumerate(answers, start=1) if answer is not None]
    assert settled[0] >= min(final, len(s))  # the values of all that is kept must be known
    assert settled == list(range(settled[0], len(s) + 1))


@pytest.mark.parametrize("text", ["4,min=16", "energy=0.1,min=16", "threshold=50,min=16"])
def test_min_waits_until_so_many_are_known(text):
    s = [1.0] * 30
    assert chosen(parse_rank(text), s, 8) is None
    assert chosen(parse_rank(text), s, 16) == 16
    assert parse_rank(text).first_guess(30) >= 16


@given(SPECTRA, RULES, st.integers(1, 100))
def test_no_rank_exceeds_the_matrix(s, rule, rank):
    assert 1 <= chosen(RankRule(*rule), s) <= len(s)
    assert chosen(RankRule("rank", rank), s) == min(rank, len(s))


@pytest.mark.parametrize("text", ["4", "energy=0.9", "ratio=3,max=100", "knee", "cumulative=0.5"])
@pytest.mark.parametrize("full", [1, 3, 64, 500])
def test_a_first_guess_fits_the_matrix(text, full):
    assert 1 <= parse_rank(text).first_guess(full) <= full


def test_energy_is_measured_against_the_whole_norm():
    """Twin: against the sum of the values that are known, a truncated spectrum looks complete."""
    s = [1.0] * 100
    for text in ("energy=0.9", "fro=0.95", "error=0.3"):
        rule = parse_rank(text)
        assert chosen(rule, s, 20) is None
        truncated = s[:20]
        assert rule.choose(tensor(truncated), total(truncated), 100) < 20
        assert chosen(rule, s) > 85


@pytest.mark.parametrize("text", ["knee", "cumulative=0.3"])
def test_rules_on_the_whole_curve_wait_for_it(text):
    rule = parse_rank(text)
    assert rule.needs_spectrum
    assert chosen(rule, [3.0, 2.0, 1.0], 2) is None
    assert chosen(rule, [3.0, 2.0, 1.0], 3) is not None


def test_kernels_have_a_rule_of_their_own():
    rule = parse_rank("32,conv=energy=0.5")
    for kernel in ((), (1, 1), (1, 1, 1)):
        assert rule.for_kernel(kernel) == rule
    for kernel in ((3, 3), (1, 2, 2), (3, 1, 1)):
        assert rule.for_kernel(kernel) == RankRule("energy", 0.5)
    assert parse_rank("32").for_kernel((3, 3)) == RankRule("rank", 32)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("32", RankRule("rank", 32)),
        (32, RankRule("rank", 32)),
        ("rank=32", RankRule("rank", 32)),
        (" rank=32 , max=8", RankRule("rank", 32, most=8)),
        ("0,conv=8", RankRule("rank", 0, conv=RankRule("rank", 8))),
        ("max=9,energy=0.9,min=2", RankRule("energy", 0.9, least=2, most=9)),
        ("energy=1", RankRule("energy", 1)),
        ("knee", RankRule("knee")),
        ("threshold=1e-3", RankRule("threshold", 1e-3)),
        (RankRule("fro", 0.5), RankRule("fro", 0.5)),
    ],
)
def test_text_forms(text, rule):
    assert parse_rank(text) == rule


@given(RULES, st.integers(1, 9), st.none() | st.integers(9, 99), st.none() | RULES)
@example(("energy", 0.99999999), 1, None, None)
@example(("energy", 0.123456789), 1, None, None)
def test_the_text_of_a_rule_reads_back_as_the_rule(rule, least, most, conv):
    conv = None if conv is None else RankRule(*conv)
    known = RankRule(*rule, least=least, most=most, conv=conv)
    assert parse_rank(str(known)) == known


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("enregy=0.9", "did you mean `energy`?"),
        ("treshold=1", "did you mean `threshold`?"),
        ("maxx=3,4", "did you mean `max`?"),
        ("quux", "one of rank, energy, fro"),
        ("", "one of rank, energy, fro"),
        ("-4", "`-4`: a rank is a whole number from 1"),
        ("1.5", "`1.5`: a rank is a whole number from 1"),
        ("rank=1.5", "give a whole number from 1"),
        ("rank=-1", "give a whole number from 1"),
        ("rank=99999", "give a whole number from 1"),
        ("energy=1.5", "give a share between 0 and 1"),
        ("energy=0", "give a share between 0 and 1"),
        ("energy", "give a share between 0 and 1"),
        ("energy=95%", "give a share between 0 and 1"),
        ("energy=nan", "give a share between 0 and 1"),
        ("ratio=1", "give a number above 1"),
        ("ratio=inf", "give a number above 1"),
        ("threshold=0", "above 0"),
        ("knee=2", "give no value"),
        ("4,8", "holds two rules, `rank` and `rank`"),
        ("4,energy=0.9", "holds two rules, `rank` and `energy`"),
        ("min=4", "start it with a rank: `32,min=4`"),
        ("4,min=0", "`min=0`: give a whole number from 1"),
        ("4,max=x", "`max=x`: give a whole number from 1"),
        ("4,max=²", "`max=²`: give a whole number from 1"),
        ("4,min=9,max=3", "min=9 is above max=3"),
        ("4,conv=energy=2", "give a share between 0 and 1"),
        ("size=50MB", "`size=` is a budget across layers"),
        ("mean=16", "`mean=` is a budget across layers"),
        ("total_error=0.1", "`total_error=` is a budget across layers"),
    ],
)
def test_wrong_texts_say_what_is_right(text, says):
    with pytest.raises(ArgumentError) as error:
        parse_rank(text)
    assert says in str(error.value)
    assert not str(error.value).endswith(".")
