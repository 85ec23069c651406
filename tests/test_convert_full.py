"""Full differences through a conversion: LyCORIS writes them in kohya's naming, ComfyUI loads both."""

from __future__ import annotations

import pytest
import torch
from kinds import numbers

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.architectures import architecture_named
from lorakit.lora_ops.convert import convert
from lorakit.lora_ops.formats import decode

SD1 = architecture_named("sd1")
#: By native target, kohya's names, as LyCORIS 4.1.3 spells a full module, and ComfyUI's.
NAMES = {
    "linear": (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    ),
    "conv": (
        "lora_unet_mid_block_resnets_0_conv1",
        "diffusion_model.middle_block.0.in_layers.2",
    ),
}
WEIGHTS = {"linear": (8, 8), "conv": (8, 8, 3, 3)}


def tensors(spelling: int) -> dict[str, torch.Tensor]:
    found = {}
    for name, shape in WEIGHTS.items():
        module = NAMES[name][spelling]
        found[f"{module}.diff"] = numbers(*shape)
        found[f"{module}.diff_b"] = numbers(8, seed=1)
    return found


def written(adapter) -> dict[str, torch.Tensor]:
    return {
        adapter.keys[name][role]: tensor
        for name, layer in adapter.layers.items()
        for role, tensor in layer.tensors().items()
    }


@pytest.mark.parametrize("here", [0, 1])
@pytest.mark.parametrize("there", [0, 1])
def test_a_full_difference_has_a_name_in_both_formats(here, there):
    adapter = decode(DictSource(tensors(here)))
    result, report = convert(adapter, ("kohya", "comfy")[there], architecture=SD1)
    expected = tensors(there)
    found = written(result)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert report.skips == ()
