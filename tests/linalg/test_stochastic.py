"""Rounding by chance: the mean, the neighbours, and the ends of the range."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.lora_ops.linalg.random_bits import random_key
from lorakit.lora_ops.linalg.stochastic import stochastic

DTYPES = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def numbers(dtype):
    """All finite numbers of a dtype, in order."""
    size = torch.finfo(dtype).bits
    patterns = torch.arange(1 << size).to({8: torch.uint8, 16: torch.int32}[size])
    if size == 16:
        patterns = torch.where(patterns >= 1 << 15, patterns - (1 << 16), patterns).to(torch.int16)
    found = patterns.view(dtype).double()
    return found[found.isfinite()].unique()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_is_one_of_the_two_neighbours(dtype):
    generator = torch.Generator().manual_seed(0)
    limits = torch.finfo(dtype)
    low, high = math.log2(limits.smallest_normal) - 12, math.log2(limits.max)
    low = max(low, -140)  # below these float32 has no numbers left
    sizes = torch.rand(20_000, generator=generator, dtype=torch.float64) * (high - low) + low
    values = (torch.exp2(sizes) * (torch.rand(20_000, generator=generator) - 0.5).sign()).float()
    rounded = stochastic(values, dtype, random_key(1, "w"))
    assert rounded.dtype == dtype
    known = numbers(dtype)
    exact = values.double()
    above = torch.searchsorted(known, exact)
    below = torch.where(known[above] == exact, above, above - 1)
    up, down = rounded.double() == known[above], rounded.double() == known[below]
    assert bool((up | down).all())
    assert 0.3 < float(up[above != below].double().mean()) < 0.7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [1 / 3, 0.02, 0.9])
def test_the_mean_is_the_number(dtype, share):
    for lower in (1.0, -3.0, 0.0):
        known = numbers(dtype)
        at = int(torch.searchsorted(known, torch.tensor(lower, dtype=torch.float64)))
        step = float(known[at + 1] - known[at])
        value = torch.tensor(lower + share * step, dtype=torch.float64).float()
        count = 1 << 16
        rounded = stochastic(value.expand(count).contiguous(), dtype, random_key(0, "w")).double()
        meant = (float(value) - lower) / step
        # Four standard deviations.
        wide = 4 * math.sqrt(meant * (1 - meant) / count)
        assert float((rounded - lower).mean()) / step == pytest.approx(meant, abs=wide)


@pytest.mark.parametrize("dtype", DTYPES)
def test_its_own_numbers_stay(dtype):
    known = numbers(dtype).float()
    assert stochastic(known, dtype, 5).double().equal(known.double())
    zeros = torch.tensor([0.0, -0.0])
    assert stochastic(zeros, dtype, 5).float().signbit().tolist() == [False, True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_range(dtype):
    most = torch.finfo(dtype).max
    beyond = torch.tensor([most * 1.001, -most * 1.001, 3.4e38, -3.4e38])
    ends = stochastic(beyond.repeat(500), dtype, 9).double().view(500, 4)
    assert ends.unique(dim=0).tolist() == [[most, -most, most, -most]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_infinity_stays_and_nan_stays(dtype):
    got = stochastic(torch.tensor([math.inf, -math.inf, math.nan, 1.0]), dtype, 9).float()
    assert got[:2].tolist() == [math.inf, -math.inf]
    assert math.isnan(float(got[2]))
    assert float(got[3]) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.sampled_from(DTYPES))
def test_parts_are_what_the_whole_is(cut, dtype):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(cut))
    whole = stochastic(values, dtype, 7)
    parts = torch.cat(
        [
            stochastic(values[:cut], dtype, 7).float(),
            stochastic(values[cut:], dtype, 7, cut).float(),
        ]
    )
    assert parts.equal(whole.float())


def test_a_small_change_survives_in_the_sum():
    weights = torch.randn(1 << 18, generator=torch.Generator().manual_seed(3)).bfloat16().float()
    change = torch.full_like(weights, 1e-4)
    kept = stochastic(weights + change, torch.bfloat16, 1).float() - weights
    lost = (weights + change).bfloat16().float() - weights
    assert float(kept.mean()) == pytest.approx(1e-4, rel=0.2)
    assert float(lost.mean()) < 0.8e-4  # what rounding to the nearest leaves of it
