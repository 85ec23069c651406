"""PiSSA and OLoRA: what their factors change is told from the weight, against LAPACK in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorakit.lora_ops.adapters.layers import LoraLayer, PissaLayer
from lorakit.lora_ops.errors import LayerShapeError, UnsupportedLayerError, WeightShapeError

RANK, ALPHA = 3, 7.0


def began(weight, initial, scale):
    """The product of the initial factors, as PEFT multiplies it by the scale."""
    if initial == "pissa":
        u, s, vh = np.linalg.svd(weight)
        return (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
    q, r = np.linalg.qr(weight)
    return scale * q[:, :RANK] @ r[:RANK]


def made(shape, initial, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    out, into = shape
    up = torch.randn(out, RANK, generator=generator).to(dtype)
    down = torch.randn(RANK, into, generator=generator).to(dtype)
    weight = torch.randn(shape, generator=generator)
    return weight, PissaLayer(LoraLayer(up, down, ALPHA), initial)


@pytest.mark.parametrize("initial", ["pissa", "olora"])
@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 16), (4, 40)])
def test_the_change_is_what_became_less_what_began(shape, initial):
    weight, layer = made(shape, initial)
    up, down = layer.inner.up.double().numpy(), layer.inner.down.double().numpy()
    scale = ALPHA / RANK
    expected = scale * up @ down - began(weight.double().numpy(), initial, scale)
    for strength in (1.0, -0.3):
        found = layer.change(weight, strength, torch.float64).numpy()
        assert np.allclose(found, strength * expected, rtol=0, atol=1e-11)
    first, second = layer.factors_of(weight)
    assert first.shape[1] == layer.rank == min(2 * RANK, *shape)
    assert np.allclose((first.double() @ second.double()).numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("initial", ["pissa", "olora"])
def test_a_small_change_of_large_factors_survives_their_rounding(initial):
    """The trained factors are nearly the initial ones: side by side in bf16, 2e-3 of each is lost."""
    weight, layer = made((48, 32), initial)
    scale = layer.scale
    if initial == "pissa":
        u, s, vh = torch.linalg.svd(weight.double())
        root = (s[:RANK] / scale).sqrt()
        first, second = u[:, :RANK] * root, root.unsqueeze(1) * vh[:RANK]
    else:
        q, r = torch.linalg.qr(weight.double())
        first, second = q[:, :RANK], r[:RANK]
    nudge = 1e-3 * torch.randn(first.shape, generator=torch.Generator().manual_seed(1)).double()
    layer = PissaLayer(LoraLayer(first + nudge, second, ALPHA), initial)
    expected = scale * nudge @ second
    up, down = (one.to(torch.bfloat16).double() for one in layer.factors_of(weight))
    assert float((up @ down - expected).norm() / expected.norm()) < 0.01


def test_without_its_weight_it_is_nothing():
    weight, layer = made((20, 12), "pissa")
    assert layer.needs_base
    for ask in (layer.delta, layer.factors):
        with pytest.raises(UnsupportedLayerError, match="PiSSA"):
            ask()
    with pytest.raises(WeightShapeError):
        layer.change(weight.mT)
    kernel = LoraLayer(torch.ones(8, 2, 1, 1), torch.ones(2, 4, 3, 3))
    with pytest.raises(LayerShapeError, match="linear layers"):
        PissaLayer(kernel, "olora")
