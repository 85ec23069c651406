from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.lora_ops.adapters.layers import DoraLayer, FullLayer, LoraLayer
from lorakit.lora_ops.errors import LayerShapeError, UnsupportedLayerError


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(up, down, scale):
    """The definition, in float64 and loops."""
    up, down = up.double().flatten(1), down.double().flatten(1)
    rows = [
        [
            scale * sum(float(up[i, r]) * float(down[r, j]) for r in range(down.shape[0]))
            for j in range(down.shape[1])
        ]
        for i in range(up.shape[0])
    ]
    return torch.tensor(rows, dtype=torch.float64)


@settings(deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.integers(1, 3), max_size=3),
    st.sampled_from([None, 0.5, -2.0, 0.0]),
)
def test_delta_is_the_scaled_product(out, into, rank, kernel, alpha):
    up, down = numbers(out, rank, *(1 for _ in kernel)), numbers(rank, into, *kernel, seed=1)
    layer = LoraLayer(up, down, alpha)
    scale = 1.0 if alpha is None else alpha / rank
    assert (layer.rank, layer.scale) == (rank, scale)
    expected = product(up, down, scale).reshape(out, into, *kernel)
    assert layer.delta().dtype == torch.float32
    torch.testing.assert_close(layer.delta(torch.float64), expected)


def test_the_trailing_ones_of_up_may_be_absent():
    up, down = numbers(4, 2), numbers(2, 3, 3, 3, seed=1)
    short, long = LoraLayer(up, down), LoraLayer(up[:, :, None, None], down)
    assert torch.equal(short.delta(), long.delta())


def test_a_core_acts_as_the_convolution_between_the_two():
    up, mid, down = numbers(5, 4, 1, 1), numbers(4, 2, 3, 3, seed=1), numbers(2, 6, 1, 1, seed=2)
    layer = LoraLayer(up.double(), down.double(), alpha=3.0, mid=mid.double())
    image = numbers(1, 6, 7, 7, seed=3).double()
    conv = torch.nn.functional.conv2d
    chain = 1.5 * conv(conv(conv(image, down.double()), mid.double()), up.double())
    torch.testing.assert_close(conv(image, layer.delta(torch.float64)), chain)
    assert layer.rank == 2


def test_half_precision_is_multiplied_out_in_the_dtype_asked_for():
    layer = LoraLayer(numbers(8, 4).half(), numbers(4, 8, seed=1).half())
    assert layer.dtype == torch.float16
    torch.testing.assert_close(
        layer.delta().double(), product(layer.up, layer.down, 1), rtol=1e-5, atol=1e-5
    )


def test_nothing_is_written_into_the_factors():
    up, down = numbers(3, 2), numbers(2, 3, seed=1)
    kept = up.clone(), down.clone()
    LoraLayer(up, down, alpha=8.0).delta()
    assert torch.equal(up, kept[0])
    assert torch.equal(down, kept[1])


@pytest.mark.parametrize(
    ("up", "down", "mid", "text"),
    [
        ((640, 16), (8, 320), None, "up is (640, 16) and down is (8, 320): their ranks, 16 and 8, differ"),
        ((4,), (2, 3), None, "a factor has two axes or more"),
        ((4, 0), (0, 3), None, "an axis is empty"),
        ((4, 2, 3, 3), (2, 3, 1, 1), None, "(3, 3) must be ones"),
        ((4, 2, 1, 1), (3, 5, 1, 1), (3, 2, 3, 3), "it must begin (2, 3)"),
        ((4, 2, 1, 1), (3, 5, 3, 3), (2, 3, 3, 3), "only one can hold the kernel"),
    ],
)  # fmt: skip
def test_factors_that_do_not_fit_are_refused(up, down, mid, text):
    core = torch.ones(mid) if mid is not None else None
    with pytest.raises(LayerShapeError) as caught:
        LoraLayer(torch.ones(up), torch.ones(down), mid=core)
    assert text in str(caught.value)


def test_dora_has_no_delta_without_the_base():
    layer = DoraLayer(LoraLayer(torch.ones(3, 1), torch.ones(1, 3)), torch.ones(3, 1))
    with pytest.raises(UnsupportedLayerError, match="give the base checkpoint"):
        layer.delta()


def test_shapes_alone_are_enough():
    layer = LoraLayer(torch.empty(4, 2, device="meta"), torch.empty(2, 3, device="meta"))
    assert layer.delta().shape == (4, 3)


@pytest.mark.parametrize(("shape", "rank"), [((), 1), ((7,), 1), ((4, 3), 3), ((2, 3, 3, 3), 2)])
def test_a_full_difference_has_the_same_face(shape, rank):
    diff = torch.ones(shape, dtype=torch.bfloat16)
    layer = FullLayer(diff)
    assert (layer.rank, layer.scale, layer.dtype) == (rank, 1.0, torch.bfloat16)
    assert layer.delta().dtype == torch.float32
    assert layer.delta().shape == shape
    assert layer.delta(torch.bfloat16) is diff
