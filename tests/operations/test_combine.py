"""Linear combinations of layers, from their factors, against dense float64 sums."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from adapters import EVERY_FORM, Part, changes, tensors
from bits import assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.lora_ops.adapters.layers import FullLayer, LoraLayer
from lorakit.lora_ops.errors import NonFiniteError
from lorakit.lora_ops.linalg.ranks.rules import parse_rank
from lorakit.lora_ops.operations.add.combine import (
    Combination,
    concatenated,
    recompressed,
    stacked,
    summed,
)

SHAPE = (40, 24)


def layer(part):
    return LoraLayer(**part.factors(), alpha=part.alpha)


def change(part):
    (found,) = changes(tensors([part])).values()
    return found


def combination(*terms, shape=None):
    layers = [layer(one) if isinstance(one, Part) else one for one, _ in terms]
    coefficients = [c for _, c in terms]
    shape = shape or layers[0].shape
    stack = stacked(layers)
    return Combination("x", shape, layers, coefficients, stack)


def dense(*terms):
    return sum(
        c * (change(one) if isinstance(one, Part) else one.diff.double()) for one, c in terms
    )


SHAPES = st.one_of(
    st.just(()),
    st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple),
)


@settings(deadline=None)
@given(SHAPES, st.integers(0, 99))
def test_a_full_difference_is_its_own_factor(shape, seed):
    """Whatever its shape: numbers, vectors, matrices, kernels."""
    diff = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    up, down = FullLayer(diff).factors()
    assert torch.equal((up @ down).reshape(shape), diff)
    assert up.shape[1] <= max(1, min(up.shape[0], down.shape[1]))


@pytest.mark.parametrize("part", EVERY_FORM, ids=lambda part: part.form)
def test_factors_carry_the_scale(part):
    part = Part(part.form, part.rank, 0.7, seed=part.seed)
    up, down = layer(part).factors()
    exact = change(part).flatten(1)
    assert oracles.error_of(exact, up.double() @ down.double()) < 1e-6 * float(exact.norm())


@pytest.mark.parametrize("form", ["linear", "conv3x3", "tucker"])
def test_inner_products_are_those_of_the_dense_changes(form):
    parts = [Part(form, rank, alpha, seed=rank) for rank, alpha in ((1, None), (4, 0.7), (9, 30.0))]
    whole = FullLayer(torch.randn(parts[0].weight))
    stack = torch.stack([*(change(p).flatten() for p in parts), whole.diff.double().flatten()])
    gram = stacked([*(layer(p) for p in parts), whole]).gram()
    assert gram.dtype == torch.float64
    size = stack.norm(dim=1)
    assert bool(((gram - stack @ stack.mT).abs() <= 1e-6 * size * size[:, None]).all())
    assert torch.allclose(gram, gram.mT, rtol=1e-12)


ALPHAS = st.sampled_from([None, 0.7, 5.0, -2.0])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 8), ALPHAS, st.floats(0.1, 3)), min_size=1, max_size=3),
    st.booleans(),
)
def test_concatenation_is_the_sum_with_and_without_a_place_for_alpha(terms, has_alpha):
    terms = [(Part(rank=r, alpha=a, seed=i), c) for i, (r, a, c) in enumerate(terms)]
    sum_ = combination(*terms)
    found = concatenated(sum_, has_alpha=has_alpha)
    exact = dense(*terms)
    assert found.rank == sum(part.rank for part, _ in terms) == sum_.rank
    assert (found.alpha is None) != has_alpha
    error = oracles.error_of(exact, found.delta(torch.float64))
    assert error < 1e-6 * math.fsum(c * float(change(p).norm()) for p, c in terms)
    assert sum_.missed(found) == pytest.approx(error, abs=3e-7 * float(exact.norm()))
    assert_equal(found.down, torch.cat([part.factors()["down"] for part, _ in terms]))


def test_what_is_too_much_for_the_layer_is_not_concatenated():
    tall = Part(rank=13, shape=(40, 24))
    assert concatenated(combination((tall, 1.0), (tall, 1.0))) is None  # 26 of 24
    narrower = Part(rank=12, shape=(40, 24))
    assert concatenated(combination((narrower, 1.0), (narrower, 1.0))).rank == 24
    assert concatenated(combination((FullLayer(torch.ones(4, 5)), 1.0))) is None


@pytest.mark.parametrize("ranks", [(20, 20), (30, 1), (7, 9)])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (20, 12, 3, 3), (9, 2, 1, 1)])
def test_recompression_without_a_rule_spends_no_rank_on_rounding(shape, ranks):
    terms = [(Part(rank=r, shape=shape, seed=i), 1.0) for i, r in enumerate(ranks)]
    found = recompressed(combination(*terms), None)
    exact = dense(*terms)
    true = int((oracles.singular_values(exact.flatten(1)) > 1e-6).sum())
    assert found.rank == true == min(sum(ranks), shape[0], math.prod(shape[1:]))
    assert found.alpha == true
    assert oracles.error_of(exact, found.delta(torch.float64)) < 1e-5 * float(exact.norm())


def test_the_same_change_twice_has_its_own_rank_after_recompression():
    part = Part(rank=5)
    found = recompressed(combination((part, 1.0), (part, 0.5)), None)
    assert found.rank == 5
    exact = dense((part, 1.5))
    assert oracles.error_of(exact, found.delta(torch.float64)) < 1e-5 * float(exact.norm())


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_recompression_is_the_best_and_truncation_before_the_sum_is_not(rank):
    """Twin: truncating each input alone and adding is worse than the best of the sum."""
    terms = [(Part(rank=8, alpha=8.0), 1.0), (Part(rank=8, alpha=8.0, seed=1), 0.8)]
    exact = dense(*terms)
    best = oracles.best_error(exact, rank)
    found = recompressed(combination(*terms), parse_rank(rank))
    sum_ = combination(*terms)
    error = oracles.error_of(exact, found.delta(torch.float64))
    assert error <= best * (1 + 1e-5)
    assert sum_.missed(found) == pytest.approx(error, rel=1e-5)
    apart = 0
    for held, (part, c) in zip((rank - rank // 2, rank // 2), terms, strict=True):
        u, s, vh = torch.linalg.svd(c * change(part), full_matrices=False)
        apart = apart + (u[:, :held] * s[:held]) @ vh[:held]
    assert oracles.error_of(exact, apart) > error * 1.02


def test_a_rank_of_zero_is_no_layer():
    assert recompressed(combination((Part(), 1.0)), parse_rank(0)) is None


@pytest.mark.parametrize(
    ("dtypes", "held"),
    [
        ((torch.float16, torch.float16), torch.float16),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.float8_e4m3fn, torch.bfloat16), torch.float32),
        ((torch.float8_e4m3fn, torch.float8_e5m2), torch.float16),
        ((torch.float64, torch.float16), torch.float32),
    ],
)
def test_the_dtype_holds_all_that_the_layers_hold(dtypes, held):
    sum_ = combination(*((Part(rank=2, dtype=dtype), 1.0) for dtype in dtypes))
    found = concatenated(sum_)
    assert sum_.dtype == found.up.dtype == found.down.dtype == held
    assert concatenated(sum_, torch.bfloat16).dtype == torch.bfloat16
    assert recompressed(sum_, None, torch.bfloat16).dtype == torch.bfloat16


def test_rounding_is_what_is_missed():
    """And the report of the sum before rounding would call it nothing."""
    terms = [(Part(rank=5), 1.0), (Part(rank=4, seed=1), 0.3)]
    sum_ = combination(*terms)
    found = concatenated(sum_, torch.bfloat16)
    error = oracles.error_of(dense(*terms), found.delta(torch.float64))
    assert sum_.missed(found) == pytest.approx(error, rel=1e-3)
    assert error > 1e-3 * float(dense(*terms).norm())
    assert sum_.missed(concatenated(sum_)) < 1e-6 * float(dense(*terms).norm())


def test_what_does_not_fit_the_dtype_is_refused():
    loud = Part(rank=2, size=3e5)
    for make in (concatenated, lambda s, d: recompressed(s, None, d)):
        with pytest.raises(NonFiniteError, match=r"layer `x`.*do not fit float16.*`dtype=` bf16"):
            make(combination((loud, 1e7)), torch.float16)


def test_full_differences_are_summed_in_float64():
    """1 + 2^-30 - 1 is not nothing; float32 on the way would say so."""
    one, small = torch.ones(3), torch.full((3,), 2.0**-30)
    layers = [(FullLayer(one), 1.0), (FullLayer(small), 1.0), (FullLayer(one), -1.0)]
    found = summed(combination(*layers))
    assert found.diff.tolist() == small.tolist()
    assert ((one + small) - one).tolist() == [0, 0, 0]
    assert summed(combination((Part(), 1.0), (FullLayer(torch.ones(40, 24)), 1.0))) is None
