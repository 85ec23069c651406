"""Rank budgets against exhaustive search on small cases, and the promises that hold on all."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from adapters import Part, adapter
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lorakit.lora_ops.errors import ArgumentError, NonFiniteError
from lorakit.lora_ops.linalg.ranks.budgets import Budget, LayerSpectrum, parse_rule, spend
from lorakit.lora_ops.linalg.ranks.rules import RankRule
from lorakit.lora_ops.operations.resize.resize import resize
from lorakit.lora_ops.text import exact_size, parse_size

OVERHEAD = 7

VALUES = st.lists(st.floats(0.01, 10), max_size=4).map(lambda s: sorted(s, reverse=True))

# The shape checks draw from it which numbers they look at; no value depends on it.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


def layer(s, cost=10, **rest):
    return LayerSpectrum(torch.tensor(s, dtype=torch.float64), cost, **rest)


COSTS, NOTHING, ONE = st.integers(1, 9), st.just(0), st.just(1.0)


@st.composite
def files(draw, *, costs=COSTS, fixed=NOTHING, weights=ONE):
    """A few small layers, not all of them zero."""
    layers = draw(
        st.lists(
            st.builds(layer, VALUES, costs, fixed=fixed, weight=weights), min_size=1, max_size=4
        )
    )
    assume(any(len(each.s) for each in layers))
    return layers


def size(layers, ranks, overhead=OVERHEAD):
    return overhead + sum(
        each.fixed + rank * each.cost for each, rank in zip(layers, ranks, strict=True) if rank
    )


def gain(layers, ranks):
    """What the ranks hold of the weighted, squared change."""
    held = [
        (each.weight * s) ** 2
        for each, rank in zip(layers, ranks, strict=True)
        for s in each.s[:rank].tolist()
    ]
    return math.fsum(held)


def error(layers, ranks):
    """Relative Frobenius error over all layers, of the true change."""
    lost = [s for x, rank in zip(layers, ranks, strict=True) for s in x.s[rank:].tolist()]
    return math.hypot(*lost) / math.hypot(*(s for each in layers for s in each.s.tolist()))


def everything(layers):
    """All ways to give ranks."""
    return itertools.product(*(range(len(each.s) + 1) for each in layers))


def dearest(layers):
    return size(layers, [len(each.s) for each in layers])


def some_size(data, layers):
    """A size that is enough for one rank, up to one that is more than enough for all."""
    least = min(size([each], [1]) for each in layers if len(each.s))
    return data.draw(st.integers(least, dearest(layers) + 3), label="size")


@given(files(costs=st.just(10)), st.data())
def test_size_is_the_best_of_all_ways_where_ranks_cost_the_same(layers, data):
    limit = some_size(data, layers)
    ranks = spend(Budget("size", limit), layers, overhead=OVERHEAD)
    best = max(gain(layers, way) for way in everything(layers) if size(layers, way) <= limit)
    assert gain(layers, ranks) == pytest.approx(best, rel=1e-12)


@given(files(weights=st.floats(0.1, 10)), st.data())
def test_size_is_at_most_one_rank_short_where_they_do_not(layers, data):
    limit = some_size(data, layers)
    ranks = spend(Budget("size", limit), layers, overhead=OVERHEAD)
    best = max(gain(layers, way) for way in everything(layers) if size(layers, way) <= limit)
    largest = max(gain([each], [1]) for each in layers)
    assert gain(layers, ranks) >= (best - largest) * (1 - 1e-12)


@given(files(fixed=st.integers(0, 20), weights=st.floats(0.1, 10)), st.data())
def test_a_file_is_never_larger_and_no_rank_that_fits_is_left(layers, data):
    limit = some_size(data, layers)
    ranks = spend(Budget("size", limit), layers, overhead=OVERHEAD)
    assert size(layers, ranks) <= limit
    for i, each in enumerate(layers):
        if ranks[i] < len(each.s):
            assert size(layers, [rank + (j == i) for j, rank in enumerate(ranks)]) > limit


@given(files(weights=st.floats(0.1, 10)), st.floats(0.1, 5))
def test_mean_is_the_best_of_all_ways(layers, mean):
    total = round(mean * len(layers))
    assume(total >= 1)
    ranks = spend(Budget("mean", mean), layers, overhead=OVERHEAD)
    best = max(gain(layers, way) for way in everything(layers) if sum(way) <= total)
    assert gain(layers, ranks) == pytest.approx(best, rel=1e-12)
    assert sum(ranks) == min(total, sum(len(each.s) for each in layers))


@given(files(costs=st.just(10)), st.floats(0.01, 0.99))
@example([layer([1.0] * 4)] * 4, 0.5)
def test_total_error_is_the_smallest_of_all_ways_where_ranks_cost_the_same(layers, bound):
    ranks = spend(Budget("total_error", bound), layers)
    least = min(sum(way) for way in everything(layers) if error(layers, way) <= bound)
    assert error(layers, ranks) <= bound * (1 + 1e-9)
    assert sum(ranks) == least


@given(
    files(fixed=st.integers(0, 20), weights=st.floats(0.1, 10)),
    st.floats(0.01, 0.99),
)
def test_total_error_is_that_of_the_true_change_and_no_rank_can_go(layers, bound):
    """Weights say what goes first; they are no part of the error that is promised."""
    ranks = spend(Budget("total_error", bound), layers)
    assert error(layers, ranks) <= bound * (1 + 1e-9)
    for i, rank in enumerate(ranks):
        if rank:
            assert error(layers, [r - (j == i) for j, r in enumerate(ranks)]) > bound * (1 - 1e-9)


@given(files(weights=st.floats(0.1, 10)), st.data())
def test_more_bytes_never_hold_less(layers, data):
    small = some_size(data, layers)
    large = small + data.draw(st.integers(0, 20))
    held = [
        gain(layers, spend(Budget("size", limit), layers, overhead=OVERHEAD))
        for limit in (small, large)
    ]
    assert held[0] <= held[1] * (1 + 1e-12)


@given(files(weights=st.floats(0.1, 10)), st.floats(0.5, 4), st.floats(0, 2))
def test_a_larger_mean_takes_no_rank_away(layers, mean, more):
    assume(round(mean * len(layers)) >= 1)
    few, many = (spend(Budget("mean", value), layers) for value in (mean, mean + more))
    assert all(a <= b for a, b in zip(few, many, strict=True))


@given(files(), st.floats(0.01, 0.9), st.floats(0, 0.09))
def test_a_looser_bound_never_takes_more_bytes(layers, bound, more):
    tight, loose = (
        size(layers, spend(Budget("total_error", value), layers)) for value in (bound, bound + more)
    )
    assert loose <= tight


@given(
    files(fixed=st.integers(0, 5)),
    st.sampled_from(["size", "mean", "total_error"]),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_limits(layers, kind, least, more):
    most = max(1, least + more)
    value = {"size": dearest(layers), "mean": 4, "total_error": 0.3}[kind]
    ranks = spend(Budget(kind, value, least, most), layers, overhead=OVERHEAD)
    for each, rank in zip(layers, ranks, strict=True):
        assert min(least, len(each.s)) <= rank <= min(most, len(each.s))


@pytest.mark.parametrize("budget", ["size=700", "mean=7", "total_error=0.5"])
def test_uniform_ranks_are_the_faulty_twin(budget):
    """One rank for all, in a file as large, leaves a larger error: that is what budgets are for."""
    decays = (0.1, 0.5, 1.0, 2.0)
    layers = [layer([10 * i**-d for i in range(1, 33)], 5 + n) for n, d in enumerate(decays)]
    ranks = spend(parse_rule(budget), layers)
    uniform = [r for r in range(33) if size(layers, [r] * 4, 0) <= size(layers, ranks, 0)][-1]
    assert error(layers, ranks) < 0.9 * error(layers, [uniform] * 4)


def test_what_still_fits_is_bought():
    layers = [layer([9.0], 10), layer([8.0], 12), layer([1.0], 3)]
    assert spend(Budget("size", 14), layers) == [1, 0, 1]


def test_a_layer_is_entered_for_all_that_it_holds():
    """Twin: its first rank judged alone, with the whole entry, loses against a poorer layer."""
    rich, poor = layer([3.0] * 8, 10, fixed=40), layer([1.6] * 12, 10)
    alone = (3.0**2 / 50, 1.6**2 / 10)
    assert alone[0] < alone[1]
    assert spend(Budget("size", 120), [rich, poor]) == [8, 0]


def test_the_entry_of_a_layer_counts_against_it():
    """Twin: gain per byte of the rank alone enters a layer that is all entry."""
    thin, plain = layer([3.0], 10, fixed=80), layer([1.6] * 12, 10)
    assert spend(Budget("size", 90), [thin, plain]) == [0, 9]


def test_the_entry_of_a_layer_that_min_has_entered_is_paid():
    layers = [layer([3.0, 2.0], 10, fixed=100), layer([3.0, 1.9], 10)]
    assert spend(Budget("size", 130, least=1), layers) == [2, 1]


def test_gain_is_squared():
    """Twin: singular values per byte would prefer the second."""
    assert spend(Budget("size", 10), [layer([3.0], 10), layer([2.0], 6)]) == [1, 0]


def test_the_entry_of_a_layer_is_paid_once():
    layers = [layer([2.0, 1.9], 10, fixed=5), layer([1.8], 10, fixed=5)]
    assert spend(Budget("size", 24), layers) == [1, 0]
    assert spend(Budget("size", 25), layers) == [2, 0]
    assert spend(Budget("size", 39), layers) == [2, 0]
    assert spend(Budget("size", 40), layers) == [2, 1]
    assert spend(Budget("size", 47), layers, overhead=8) == [2, 0]


def test_weights_say_whose_gain_counts():
    plain = [layer([2.0, 1.0]), layer([3.0, 1.5])]
    heavy = [layer([2.0, 1.0], weight=4.0), layer([3.0, 1.5])]
    assert spend(Budget("mean", 0.5), plain) == [0, 1]
    assert spend(Budget("mean", 0.5), heavy) == [1, 0]
    assert spend(Budget("mean", 1), heavy) == [2, 0]


def test_ties_go_to_the_first():
    layers = [layer([1.0, 1.0]) for _ in range(3)]
    assert spend(Budget("mean", 1), layers) == [2, 1, 0]
    assert spend(Budget("size", 30), layers) == [2, 1, 0]
    assert spend(Budget("total_error", 0.71), layers) == [2, 1, 0]


@pytest.mark.parametrize("budget", ["size=1MB", "mean=60", "total_error=1e-15", "mean=60,min=50"])
def test_directions_of_rounding_get_nothing(budget):
    """Twin: a rank for each stored value, were they all noise."""
    layers = [layer([1.0, 0.5, 1e-8, 1e-9, 0.0]), layer([0.0, 0.0]), layer([]), layer([1e-30])]
    assert spend(parse_rule(budget), layers) == [2, 0, 0, 1]


@pytest.mark.parametrize("kind", ["size", "mean", "total_error"])
@pytest.mark.parametrize("layers", [[], [layer([])], [layer([0.0, 0.0]), layer([0.0])]])
def test_nothing_to_share_out(kind, layers):
    with pytest.raises(ArgumentError, match=f"none of {len(layers)} layers holds a change"):
        spend(Budget(kind, 0.5), layers)


# --- Kernels with a rule of their own -----------------------------------------------------------

MIXED = [
    layer([4.0, 2.0, 1.0], 10),
    layer([4.0, 2.0, 1.0], 10, kernel=(3, 3)),
    layer([4.0, 2.0, 1.0], 10, kernel=(1, 1)),
    layer([0.0], 10, kernel=(3, 3)),
]


@pytest.mark.parametrize(
    ("budget", "ranks"),
    [
        ("size=60,conv=2", [2, 2, 2, 0]),
        ("size=60,conv=3", [2, 3, 1, 0]),
        ("size=60,conv=energy=0.7", [3, 1, 2, 0]),
        ("size=60,conv=0", [3, 0, 3, 0]),
        ("size=60", [2, 2, 2, 0]),
        ("mean=1,conv=1", [2, 1, 1, 0]),
        ("mean=1,conv=3", [1, 3, 0, 0]),
        ("size=60,max=1,conv=3", [1, 3, 1, 0]),
        ("total_error=0.32,conv=1", [3, 1, 2, 0]),
        ("total_error=0.01,max=2,conv=1", [2, 1, 2, 0]),  # out of reach: as near as the limits let
    ],
)
def test_kernels_count_first(budget, ranks):
    assert spend(parse_rule(budget), MIXED) == ranks


# --- Too little ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "what"),
    [
        ("size=16", "the smallest single rank"),
        ("size=30,min=1", "what `min=` and `conv=` ask for"),
        ("size=30,conv=3", "what `min=` and `conv=` ask for"),
        ("mean=0.1", "the smallest single rank"),
        ("mean=1,min=2", "what `min=` and `conv=` ask for"),
        ("mean=0.5,conv=3", "what `min=` and `conv=` ask for"),
    ],
)
def test_too_little_says_how_much_is_enough(budget, what):
    with pytest.raises(ArgumentError) as refused:
        spend(parse_rule(budget), MIXED, overhead=OVERHEAD)
    text = str(refused.value)
    assert what in text
    advised = re.search(r"give `((?:size|mean)=([\d.]+))` or more$", text)
    assert advised, text
    limits = budget.partition(",")
    enough = f"{advised[1]}{limits[1]}{limits[2]}"
    assert sum(spend(parse_rule(enough), MIXED, overhead=OVERHEAD)) > 0
    kind, less = advised[1].partition("=")[0], float(advised[2])
    less = less - 1 if kind == "size" else less - 0.25
    if less > 0:
        with pytest.raises(ArgumentError):
            spend(parse_rule(f"{kind}={less}{limits[1]}{limits[2]}"), MIXED, overhead=OVERHEAD)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_spectra_must_be_finite(value):
    """Twin: NaN compares as smaller than everything, and the layer would silently vanish."""
    with pytest.raises(NonFiniteError):
        layer([2.0, value])


@pytest.mark.parametrize("wrong", [{"cost": 0}, {"weight": 0.0}, {"weight": math.inf}])
def test_layers_cost_and_weigh_something(wrong):
    with pytest.raises(ArgumentError, match="above 0"):
        layer([1.0], **wrong)


# --- Text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("size=50MB", Budget("size", 50_000_000)),
        ("size=1.5 MiB", Budget("size", 3 * 2**19)),
        ("size=1000000", Budget("size", 10**6)),
        (" mean=16 , min=4,max=64", Budget("mean", 16, 4, 64)),
        ("mean=0.5", Budget("mean", 0.5)),
        ("conv=8,total_error=0.1", Budget("total_error", 0.1, conv=RankRule("rank", 8))),
        ("size=2GB,conv=energy=0.5", Budget("size", 2e9, conv=RankRule("energy", 0.5))),
        (Budget("mean", 3), Budget("mean", 3)),
        (RankRule("fro", 0.5), RankRule("fro", 0.5)),
        ("energy=0.9,max=9", RankRule("energy", 0.9, most=9)),
        ("32", RankRule("rank", 32)),
        (32, RankRule("rank", 32)),
    ],
)
def test_one_entry_reads_rules_and_budgets(text, rule):
    assert parse_rule(text) == rule


@given(
    st.one_of(
        st.builds(Budget, st.just("size"), st.integers(1, 10**12)),
        st.builds(Budget, st.just("mean"), st.floats(0, 65536, exclude_min=True, exclude_max=True)),
        st.builds(Budget, st.just("total_error"), st.floats(1e-9, 1, exclude_max=True)),
    ),
    st.integers(0, 9),
    st.none() | st.integers(9, 99),
    st.none() | st.just(RankRule("ratio", 3.5)),
)
@example(Budget("size", 50_000_000), 0, None, None)
def test_the_text_of_a_budget_reads_back_as_the_budget(budget, least, most, conv):
    known = Budget(budget.kind, budget.value, least, most, conv)
    assert parse_rule(str(known)) == known


def test_sizes_are_written_as_people_write_them():
    assert str(parse_rule("size=50MB,conv=8")) == "size=50MB,conv=8"
    assert [exact_size(n) for n in (2 * 10**9, 1_500_000, 1_500_001)] == [
        "2GB",
        "1500kB",
        "1500001",
    ]


@given(st.integers(1, 10**12))
def test_sizes_read_back(count):
    assert parse_size(exact_size(count)) == count


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("siez=5MB", "did you mean `size`?"),
        ("enregy=0.5", "did you mean `energy`?"),
        ("quux", "total_error"),
        ("size=", "write 8GB, 512MiB"),
        ("size=much", "write 8GB, 512MiB"),
        ("size=0", "`size=0`: give a size above 0"),
        ("size=-5MB", "give a size above 0"),
        ("mean=0", "`mean=0`: give ranks per layer, a number above 0"),
        ("mean=inf", "a number above 0"),
        ("mean=nan", "a number above 0"),
        ("mean", "a number above 0"),
        ("total_error=0", "`total_error=0`: give a share between 0 and 1"),
        ("total_error=1", "a share between 0 and 1"),
        ("total_error=10%", "a share between 0 and 1"),
        ("size=5MB,mean=4", "holds two rules, `size` and `mean`"),
        ("size=5MB,32", "holds two rules, `size` and `rank`"),
        ("size=5MB,min=8,max=4", "min=8 is above max=4"),
        ("size=5MB,min=0", "`min=0`: give a whole number from 1"),
        ("mean=4,conv=size=1MB", "`size=` is a budget across layers"),
        ("min=4", "has limits but no rule"),
        ("energy=2", "give a share between 0 and 1"),
    ],
)
def test_wrong_texts_say_what_is_right(text, says):
    with pytest.raises(ArgumentError) as refused:
        parse_rule(text)
    assert says in str(refused.value)
    assert not str(refused.value).endswith(".")


def test_a_mean_says_that_it_counts_layers_without_a_rank():
    """Of four layers two get all: the mean of those that are written is twice what was asked for."""
    parts = [Part(seed=n, module=f"a.{n}.to_q", size=1.0 if n < 2 else 1e-3) for n in range(4)]
    smaller, report = resize(adapter(parts), "mean=3")
    assert sorted(layer.rank for layer in smaller.layers.values()) == [6, 6]
    assert report.notes == (
        "`mean=3` is over 2 layers too that got no rank: the others have 6 on average",
    )
    assert resize(adapter(parts[:2]), "mean=3")[1].notes == ()
