"""PEFT's IA3 and BOFT without PEFT: where their layers lie, and what they do, by float64 loops."""

from __future__ import annotations

import json

import pytest
import torch
from baking import adapter, is_rounded_once, randn
from checkpoints import FLUX, OPENCLIP, source
from torch import Tensor

from lorakit.lora_ops import DictSource, Ingredient, decode, describe
from lorakit.lora_ops.adapters.formats import PEFT_CONFIG
from lorakit.lora_ops.adapters.layers import InputButterflyLayer, PeftIa3Layer
from lorakit.lora_ops.errors import LayerShapeError, UnsupportedLayerError, WeightShapeError
from lorakit.lora_ops.operations.bake.bake import bake
from lorakit.lora_ops.operations.bake.plan import plan_bake

ROOT = "base_model.model."


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {key: randn(*shape, seed=i) for i, (key, shape) in enumerate(shapes.items())}


def times(weight: Tensor, gains: Tensor, strength: float = 1.0) -> Tensor:
    """Each row, or number of a bias, times its gain; in float64."""
    factors = 1 + strength * (gains.double().flatten() - 1)
    return weight.double() * factors.reshape(-1, *[1] * (weight.ndim - 1))


def test_rows_of_fused_weights_and_of_their_biases_are_multiplied():
    base = filled(OPENCLIP)
    gains = randn(32, 1, seed=50) + 1
    module = "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.k_proj"
    baked, report = bake(source(base), [adapter({f"{module}.ia3_l": gains}, 0.3)])
    assert len(report.layers) == 2
    for end in ("weight", "bias"):
        key = f"conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_{end}"
        expected = base[key].double()
        expected[32:64] = times(base[key][32:64], gains, 0.3)
        assert is_rounded_once(baked[key], expected)


def test_names_of_another_program_find_the_rows_too():
    base = filled(FLUX)
    attention = f"{ROOT}transformer_blocks.0.attn.to_"
    gains = {part: randn(48, 1, seed=60 + i) + 1 for i, part in enumerate("qkv")}
    lora = {f"{attention}{part}.ia3_l": one for part, one in gains.items() if part != "k"}
    baked, _ = bake(source(base), [adapter(lora)])
    whole = torch.cat([gains["q"], torch.ones(48, 1), gains["v"]])
    for end in ("weight", "bias"):
        (key,) = (one for one in base if one.endswith(f"img_attn.qkv.{end}"))
        assert is_rounded_once(baked[key], times(base[key], whole))


@pytest.mark.parametrize("end", ["", ".weight", ".default", ".default.weight", ".my-own"])
def test_keys_may_have_the_name_of_the_adapter(end):
    layers = decode(
        DictSource(
            {
                f"{ROOT}a.ia3_l{end}": torch.full((8, 1), 2.0),
                f"{ROOT}b.boft_R{end}": torch.zeros(1, 2, 3, 3),
                f"{ROOT}b.boft_s{end}": torch.ones(8, 1),
            }
        )
    ).layers
    assert isinstance(layers[f"{ROOT}a"], PeftIa3Layer)
    assert isinstance(layers[f"{ROOT}b"], InputButterflyLayer)
    assert layers[f"{ROOT}b"].shape == (8, 6)


def test_a_saved_permutation_is_carried():
    """PEFT before it left them out wrote the permutations, which the shapes tell."""
    held = {
        f"{ROOT}b.boft_R": torch.zeros(1, 2, 3, 3),
        f"{ROOT}b.boft_s": torch.ones(8, 1),
        f"{ROOT}b.boft_P": torch.eye(6)[None],
    }
    assert describe(DictSource(held)).kind == "BOFT of the inputs adapter"
    assert list(decode(DictSource(held)).extras) == [f"{ROOT}b.boft_P"]


@pytest.mark.parametrize(
    ("feedforward", "is_input"),
    [
        (["conv"], True),
        (["net.conv"], True),
        (["v"], True),  # PEFT takes any end of a name
        (["con", "other"], False),
        ([], False),
        (r".*\.conv", True),
        ("conv", False),  # a pattern has to be all of the name
        (r"net\.(conv|proj)", True),
    ],
)
def test_the_configuration_tells_the_side_of_a_convolution(feedforward, is_input):
    config = {"peft_type": "IA3", "feedforward_modules": feedforward}
    held = {f"{ROOT}net.conv.ia3_l": torch.full((1, 8, 1, 1), 2.0)}
    layer = decode(DictSource(held, {PEFT_CONFIG: json.dumps(config)})).layers[f"{ROOT}net.conv"]
    assert isinstance(layer, PeftIa3Layer)
    assert layer.shape == ((-1, 8) if is_input else (8, -1))
    assert (layer.bias is None) == is_input


def test_what_only_the_configuration_tells_is_refused_without():
    held = {f"{ROOT}net.conv.ia3_l": torch.full((1, 8, 1, 1), 2.0)}
    with pytest.raises(UnsupportedLayerError, match=r"`adapter_config\.json`"):
        dict(decode(DictSource(held)).layers)
    assert describe(DictSource(held)).kind == "IA3 of PEFT adapter"


@pytest.mark.parametrize("shape", [(), (8,), (8, 2), (0, 1), (8, 1, 1, 1), (1, 4, 3, 1)])
def test_gains_of_another_shape_are_refused(shape):
    with pytest.raises(LayerShapeError, match="ia3_l is"):
        PeftIa3Layer(torch.ones(shape))


def test_another_model_is_refused_before_anything_is_read():
    lora = adapter({f"{ROOT}img_in.ia3_l": torch.ones(47, 1)})
    with pytest.raises(WeightShapeError, match="another model"):
        plan_bake(source(filled(FLUX)), [Ingredient(lora.source)])


@pytest.mark.parametrize(("stages", "size", "blocks"), [(1, 3, 2), (2, 2, 4), (3, 4, 4)])
def test_butterflies_rotate_runs_that_lie_apart(stages, size, blocks):
    inputs, run = size * blocks, size // 2
    numbers = randn(stages, blocks, size, size, seed=1)
    gains = randn(5, 1, seed=2)
    weight = randn(5, inputs, seed=3)
    expected = weight.double()
    eye = torch.eye(size, dtype=torch.float64)
    for stage in range(stages):
        groups = (
            [list(range(i * size, (i + 1) * size)) for i in range(blocks)]
            if stage == 0
            else [
                [first * run + j for j in range(run)]
                + [(first + 2**stage) * run + j for j in range(run)]
                for first in range(inputs // run)
                if not first >> stage & 1
            ]
        )
        rotated = expected.clone()
        for block, places in zip(numbers[stage].double(), groups, strict=True):
            skew = (block - block.mT) / 2
            turn = (eye - skew) @ torch.linalg.inv(eye + skew)
            rotated[:, places] = expected[:, places] @ turn.mT
        expected = rotated
    expected = gains.double() * expected - weight.double()
    found = InputButterflyLayer(numbers, gains).change(weight, 0.7, torch.float64)
    torch.testing.assert_close(found, 0.7 * expected)
