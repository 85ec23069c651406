"""The SVD of a product from its factors against LAPACK's of the product, and the variants that fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import error_of, power, singular_values, steps
from torch import Tensor

from lorakit.lora_ops.linalg import (
    FactoredSvd,
    distance,
    factored,
    factored_svd,
    gram_matrix,
    inner,
    thinned,
)

# Shares of |up| |down| that float32 factors do not hold: nothing smaller is told from rounding.
FLOOR = 2e-7
EXACT = 1e-5


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_values(out: int, into: int, values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Factors whose product has these singular values, and whose own columns are no use as vectors."""
    rank = len(values)
    left = torch.linalg.qr(randn(out, rank, seed=seed))[0]
    right = torch.linalg.qr(randn(into, rank, seed=seed + 1))[0]
    mix = torch.linalg.qr(randn(rank, rank, seed=seed + 2))[0]
    root = values.sqrt()
    return (left * root @ mix).float(), ((mix.mT * root) @ right.mT).float()


def uneven(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with its columns and rows in sizes from 1e-6 to 1e6."""
    sizes = torch.logspace(-6, 6, up.shape[1])
    return up * sizes, down / sizes.unsqueeze(1)


def without(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The factors with a column, a row and a pair of both put to zero."""
    up, down = up.clone(), down.clone()
    up[:, 1] = up[:, 3] = down[2] = down[3] = 0
    return up, down


def scenes() -> dict[str, tuple[Tensor, Tensor]]:
    plain = randn(60, 12).float(), randn(12, 48, seed=1).float()
    # Two trained from one start: what is common to them cancels, and a thousandth is left.
    common, small = randn(60, 6, seed=2).float(), 1e-3 * randn(60, 6, seed=3).float()
    half = randn(6, 48, seed=4).float()
    return {
        "random": plain,
        "steep": with_values(60, 48, torch.logspace(0, -6, 12, dtype=torch.float64)),
        "very steep": with_values(60, 48, torch.logspace(0, -24, 12, dtype=torch.float64)),
        "flat": with_values(60, 48, torch.ones(12, dtype=torch.float64)),
        "falling": with_values(60, 48, power(12, 0.8)),
        "plateaus": with_values(60, 48, steps(40)),
        "exact rank": ((randn(60, 5) @ randn(5, 12, seed=1)).float(), plain[1]),
        "same column": (plain[0][:, :1].repeat(1, 12), plain[1]),
        "uneven": uneven(*plain),
        "uneven falling": uneven(*with_values(60, 48, power(12, 0.8))),
        "tiny and huge": (plain[0] * 1e-12, plain[1] * 1e10),
        "tiny": (plain[0] * 1e-15, plain[1] * 1e-15),
        "zero columns": without(*plain),
        "one side only": (
            plain[0] * torch.eye(12)[0] * 1e-6,
            plain[1] * torch.logspace(-6, 6, 12)[:, None],
        ),
        "cancelling": (torch.cat([common, common + small], 1), torch.cat([half, -half])),
        "cancelling exactly": (torch.cat([common, common], 1), torch.cat([half, -half])),
        "zero": (torch.zeros(60, 12), torch.zeros(12, 48)),
        "zero up": (torch.zeros(60, 12), plain[1]),
        "rank 1": (randn(60, 1).float(), randn(1, 48, seed=1).float()),
        "full rank": (randn(30, 20).float(), randn(20, 20, seed=1).float()),
        "vectors": (randn(1, 1).float(), randn(1, 9, seed=1).float()),
    }


SCENES = scenes()
# Where the balance of the factors decides, and where the width of the sums does.
UNEVEN, STEEP = ("uneven", "uneven falling"), ("steep", "very steep", "cancelling")


def product(up: Tensor, down: Tensor) -> Tensor:
    return up.double() @ down.double()


def size(up: Tensor, down: Tensor) -> float:
    """What rounding is a share of: the products' sizes, column by column, before they cancel."""
    columns = up.double().norm(dim=0) * down.double().norm(dim=1)
    return float(columns.norm()) or 1.0


def check_values(up: Tensor, down: Tensor, svd: FactoredSvd) -> None:
    exact = singular_values(product(up, down))[: len(svd.s)]
    np.testing.assert_allclose(svd.s.numpy(), exact, rtol=EXACT, atol=FLOOR * size(up, down))


def check_truncations(up: Tensor, down: Tensor, svd: FactoredSvd) -> None:
    whole = product(up, down)
    exact = singular_values(whole)
    for rank in range(1, len(svd.s) + 1):
        best = math.sqrt(math.fsum(exact[rank:] ** 2))
        error = error_of(whole, product(*svd.factors(rank)))
        assert error <= best * (1 + EXACT) + FLOOR * size(up, down)


def passes(check, up: Tensor, down: Tensor) -> bool:
    try:
        check(up, down, factored_svd(up, down))
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("scene", SCENES)
def test_singular_values_are_those_of_the_product(scene):
    check_values(*SCENES[scene], factored_svd(*SCENES[scene]))


@pytest.mark.parametrize("scene", SCENES)
def test_no_other_matrix_of_that_rank_is_nearer(scene):
    check_truncations(*SCENES[scene], factored_svd(*SCENES[scene]))


@pytest.mark.parametrize("scene", SCENES)
def test_what_a_decomposition_holds(scene):
    up, down = SCENES[scene]
    svd = factored_svd(up, down)
    rank = up.shape[1]
    assert (svd.s.shape, svd.left.shape, svd.right.shape) == ((rank,), (rank, rank), (rank, rank))
    assert svd.s.dtype == svd.left.dtype == svd.right.dtype == torch.float64
    assert bool((svd.s >= 0).all() and (svd.s.diff() <= 0).all())
    for factor in (*svd.factors(rank), svd.left, svd.right):
        assert bool(factor.isfinite().all())
    thin = svd.factors(1)
    assert [tuple(factor.shape) for factor in thin] == [(len(up), 1), (1, down.shape[1])]
    assert thin[0].dtype == thin[1].dtype == torch.float32
    # Both factors of a direction carry the root of its singular value.
    kept = int((svd.s > 1e-3 * svd.s[0]).sum()) if svd.s[0] else 0
    for factor in (svd.factors(kept)[0].mT, svd.factors(kept)[1]):
        grown = factor.double() @ factor.double().mT
        torch.testing.assert_close(
            grown, torch.diag(svd.s[:kept]), rtol=1e-4, atol=1e-4 * float(svd.s[0])
        )


def test_directions_that_are_only_rounding_are_zero():
    """So that no rule spends a rank on them: of twelve columns five, one, or none mean something."""
    counts = {
        name: int((factored_svd(*SCENES[name]).s > 0).sum())
        for name in ("same column", "zero columns", "cancelling exactly", "zero", "zero up")
    }
    assert counts == {
        "same column": 1,
        "zero columns": 9,
        "cancelling exactly": 0,
        "zero": 0,
        "zero up": 0,
    }
    up, down = randn(60, 5).float(), randn(5, 48, seed=1).float()
    double = torch.cat([up, up], dim=1), torch.cat([down, down])
    assert int((factored_svd(*double).s > 0).sum()) == 5


# --- Variants that fail ------------------------------------------------------------------------


@pytest.mark.parametrize("scene", STEEP)
def test_twin_sums_in_float32_lose_the_small_values(scene, monkeypatch):
    assert passes(check_values, *SCENES[scene])
    monkeypatch.setattr(factored, "wide", lambda tensor: tensor)
    assert not passes(check_values, *SCENES[scene])


@pytest.mark.parametrize("scene", UNEVEN)
def test_twin_without_balance_uneven_factors_are_lost(scene, monkeypatch):
    assert passes(check_truncations, *SCENES[scene])
    monkeypatch.setattr(factored, "_balance", lambda left, _right: (left.new_ones(len(left)),) * 2)
    assert not passes(check_truncations, *SCENES[scene])


@pytest.mark.parametrize("scene", ["random", "falling", "uneven", "full rank"])
def test_twin_the_first_columns_are_no_truncation(scene):
    up, down = SCENES[scene]
    whole, rank = product(up, down), up.shape[1] // 2
    best = math.sqrt(math.fsum(singular_values(whole)[rank:] ** 2))
    assert error_of(whole, product(*factored_svd(up, down).factors(rank))) <= best * (1 + 1e-4)
    assert error_of(whole, product(up[:, :rank], down[:rank])) > 1.05 * best


def test_twin_one_root_for_all_would_not_be_the_product():
    """Factors with s instead of its root on each side square the change."""
    up, down = SCENES["falling"]
    svd = factored_svd(up, down)
    whole = product(up, down)
    assert error_of(whole, product(*svd.factors(12))) <= EXACT
    first, last = svd.factors(12)
    assert error_of(whole, product(first * svd.s.sqrt().float(), last)) > 0.1


# --- Stacks --------------------------------------------------------------------------------------


def test_a_stack_is_each_of_its_products():
    """Also where one of them needs eigenvectors and the others would do without."""
    names = [
        name for name, (up, down) in SCENES.items() if (*up.shape, down.shape[1]) == (60, 12, 48)
    ]
    assert len(names) > 10
    for some in (names, ["random", "falling", "flat"]):
        stack = factored_svd(
            *(torch.stack(each) for each in zip(*(SCENES[n] for n in some), strict=True))
        )
        for index, name in enumerate(some):
            up, down = SCENES[name]
            check_values(up, down, stack[index])
            check_truncations(up, down, stack[index])
            alone = factored_svd(up, down)
            torch.testing.assert_close(
                stack[index].s, alone.s, rtol=EXACT, atol=FLOOR * size(up, down)
            )


def test_the_same_factors_give_the_same_bits():
    first, second = factored_svd(*SCENES["falling"]), factored_svd(*SCENES["falling"])
    for a, b in zip(first.factors(6), second.factors(6), strict=True):
        assert torch.equal(a, b)


def test_nothing_is_written_into_the_factors():
    up, down = (factor.clone() for factor in SCENES["uneven"])
    factored_svd(up, down).factors(3)
    assert torch.equal(up, SCENES["uneven"][0])
    assert torch.equal(down, SCENES["uneven"][1])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**31),
    st.lists(st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 1e3, 1e6]), min_size=9, max_size=9),
    st.lists(st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 1e3, 1e6]), min_size=9, max_size=9),
)
def test_any_small_factors(out, into, rank, seed, columns, rows):
    rank = min(rank, out, into)
    up = randn(out, rank, seed=seed).float() * torch.tensor(columns[:rank])
    down = randn(rank, into, seed=seed + 1).float() * torch.tensor(rows[:rank]).unsqueeze(1)
    svd = factored_svd(up, down)
    check_values(up, down, svd)
    check_truncations(up, down, svd)


# --- What goes with it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "rank", "into"), [(8, 12, 20), (20, 12, 8), (8, 12, 8), (9, 12, 10), (12, 12, 12), (1, 5, 7)]
)  # fmt: skip
@pytest.mark.parametrize("batch", [(), (3,)])
def test_thinned_factors_have_the_same_product(out, rank, into, batch):
    up, down = randn(*batch, out, rank).float(), randn(*batch, rank, into, seed=1).float()
    thin = thinned(up, down)
    assert thin[0].shape == (*batch, out, min(out, rank, into))
    assert thin[1].shape == (*batch, min(out, rank, into), into)
    torch.testing.assert_close(product(*thin), product(up, down), rtol=1e-5, atol=1e-5)
    svd = factored_svd(*thin)
    exact = torch.linalg.svdvals(product(up, down))
    torch.testing.assert_close(svd.s, exact, rtol=1e-5, atol=1e-5)


def test_thin_factors_stay_what_they_are():
    up, down = SCENES["random"]
    same = thinned(up, down)
    assert (same[0] is up, same[1] is down) == (True, True)


def test_gram_is_the_table_of_inner_products():
    one, other = SCENES["random"][0].mT, SCENES["falling"][0].mT
    expected = [
        [math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True)) for y in other]
        for x in one
    ]
    found = gram_matrix(one, other)
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(gram_matrix(one, one), one.double() @ one.double().mT)


PAIRS = [("random", "falling"), ("steep", "uneven"), ("random", "zero"), ("tiny", "tiny and huge")]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_inner_and_distance_are_those_of_the_products(one, other):
    first, second = product(*SCENES[one]), product(*SCENES[other])
    torch.testing.assert_close(
        inner(*SCENES[one], *SCENES[other]), (first * second).sum(), rtol=1e-9, atol=0
    )
    expected = (first - second).norm()
    torch.testing.assert_close(distance(*SCENES[one], *SCENES[other]), expected, rtol=1e-9, atol=0)
    known = distance(*SCENES[one], *SCENES[other], square=first.square().sum())
    torch.testing.assert_close(known, expected, rtol=1e-9, atol=0)


def test_ranks_may_differ_and_stacks_go_together():
    ups, downs = randn(3, 10, 4).float(), randn(3, 4, 8, seed=1).float()
    others = randn(3, 10, 2, seed=2).float(), randn(3, 2, 8, seed=3).float()
    whole, other = product(ups, downs), product(*others)
    torch.testing.assert_close(inner(ups, downs, *others), (whole * other).sum((1, 2)))
    torch.testing.assert_close(
        distance(ups, downs, *others), (whole - other).flatten(1).norm(dim=1)
    )


@pytest.mark.parametrize("share", [1e-1, 1e-3, 1e-5, 1e-6])
def test_a_small_distance_is_seen(share):
    """Twin: float32 sums see nothing of the small ones."""
    up, down = SCENES["random"]
    other = up + share * randn(60, 12, seed=9).float()
    expected = (product(up, down) - product(other, down)).norm()
    torch.testing.assert_close(distance(up, down, other, down), expected, rtol=2e-2, atol=0)
    if share <= 1e-5:
        squares = [(up.mT @ a * (down @ down.mT)).sum() for a in (up, other)]
        last = (other.mT @ other * (down @ down.mT)).sum()
        cheap = (squares[0] - 2 * squares[1] + last).clamp(min=0).sqrt()
        assert abs(float(cheap / expected) - 1) > 2e-2


def test_the_distance_of_a_product_to_itself():
    up, down = SCENES["random"]
    assert float(distance(up, down, up, down)) <= 1e-7 * size(up, down)
