"""Was a layer trained, or only saved again? Against the tables of all numbers that a dtype has."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit.lora_ops import DictSource, extract
from lorakit.lora_ops.errors import MismatchError
from lorakit.lora_ops.linalg.rounding import is_rounding

SMALL = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
WIDE = [torch.float32, torch.float64]


def one(value, dtype):
    return torch.tensor([value], dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("apart", [1, 2, 3])
def test_numbers_one_spacing_apart_are_rounding_and_no_others(dtype, apart):
    """All numbers of the dtype, against the gap above the larger one; below a power of two it is half."""
    values = oracles.finite_values(dtype)
    values = values[values >= 0]
    less, more = values[: -apart - 1], values[apart:-1]
    gap = values[apart + 1 :] - more
    expected = more - less <= gap
    assert bool(expected.all()) == (apart == 1)
    assert is_rounding(less[expected].to(dtype), more[expected].to(dtype))
    assert is_rounding((-more[expected]).to(dtype), (-less[expected]).to(dtype))
    # One at a time, and so few of the 16-bit ones that this takes no seconds: all near the ends and
    # the powers of two, every 29th of the rest.
    apart_ones = torch.stack([less[~expected], more[~expected]], dim=1).tolist()
    edges = {2.0**n for n in range(-140, 16)}
    for index, (a, b) in enumerate(apart_ones):
        if len(apart_ones) < 999 or index % 29 == 0 or a in edges or b in edges or index < 9:
            assert not is_rounding(one(a, dtype), one(b, dtype)), (a, b)
            assert not is_rounding(one(-b, dtype), one(-a, dtype)), (a, b)


@pytest.mark.parametrize("dtype", WIDE)
@given(exponent=st.integers(-1074, 1022), mantissa=st.floats(1, 2, exclude_max=True))
def test_neighbours_of_wide_numbers(dtype, exponent, mantissa):
    value = one(math.ldexp(mantissa, exponent), dtype)
    infinity = torch.tensor(math.inf, dtype=dtype)
    after = torch.nextafter(value, infinity)
    third = torch.nextafter(torch.nextafter(after, infinity), infinity)
    if not bool(third.isfinite()):
        return
    assert is_rounding(value, after)
    assert is_rounding(-after, -value)
    assert not is_rounding(value, third)


@pytest.mark.parametrize("dtype", [*SMALL, *WIDE])
def test_zero_and_the_smallest(dtype):
    limits = torch.finfo(dtype)
    tiny = limits.smallest_normal * limits.eps
    zero = torch.zeros(3, dtype=dtype)
    assert is_rounding(zero, zero)
    assert is_rounding(zero, (-zero.double()).to(dtype))
    assert is_rounding(zero, torch.full((3,), tiny, dtype=torch.float64).to(dtype))
    assert not is_rounding(zero, torch.full((3,), 2 * tiny, dtype=torch.float64).to(dtype))
    assert not is_rounding(zero, torch.ones(3).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("coarse", SMALL)
def test_a_layer_saved_again_in_a_coarser_dtype_is_rounding(dtype, coarse):
    weight = torch.randn(300, 200).to(dtype)
    again = weight.to(coarse)
    assert is_rounding(weight, again)
    assert is_rounding(again, weight)
    assert not is_rounding(weight, again.to(dtype))  # both sides claim to be finer than that
    moved = again.clone()
    moved[17, 3] = one(float(moved[17, 3].double()) * 1.8, coarse)[0]
    assert not is_rounding(weight, moved)


def test_one_element_far_behind_the_others_is_seen():
    """Beyond the first look and at the very end of several parts."""
    weight = torch.randn(1025, 2049)
    assert is_rounding(weight, weight.clone())
    for index in ((0, 0), (2, 0), (1024, 2048)):
        moved = weight.clone()
        moved[index] *= 1 + 4 * torch.finfo(torch.float32).eps
        assert not is_rounding(weight, moved)


def test_nan_is_no_rounding():
    weight = torch.zeros(4)
    assert not is_rounding(weight, torch.full((4,), math.nan))


def test_a_checkpoint_saved_again_is_reported_as_such():
    weights = {"diffusion_model.blocks.0.q.weight": torch.randn(20, 30)}
    again = {key: weight.bfloat16() for key, weight in weights.items()}
    with pytest.raises(MismatchError, match="1 only storage rounding differs"):
        extract(DictSource(weights), DictSource(again), 4)
