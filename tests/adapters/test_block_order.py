"""The layers of a block are in the order in which ComfyUI's own models have them."""

from __future__ import annotations

import pytest
from comfy_host import started
from keys.models import HOSTED

from lorakit.lora_ops.adapters.strengths.blocks import flat, locate, ordered

UNET = {
    "base": "SDXL",
    "config": {},
    "module": "modules.diffusionmodules.openaimodel",
    "class": "UNetModel",
    "arguments": {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "num_heads": 2,
        "use_spatial_transformer": True,
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "context_dim": 2048,
        "use_linear_in_transformer": True,
    },
}
QUESTIONS = {
    "unet": {
        **UNET,
        "config": {
            "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 4],
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_middle": 10,
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        },
    },
    **{
        name: HOSTED[name].question() for name in ("flux", "chroma", "wan", "qwen_image", "z_image")
    },
}


@pytest.fixture(scope="module")
def host():
    with started() as one:
        yield one


@pytest.mark.parametrize("name", QUESTIONS)
def test_layers_of_a_block_are_in_the_model_s_order(host, name):
    shapes = host.ask("lora_names", {**QUESTIONS[name], "files": {}})["shapes"]
    layers = [
        f"diffusion_model.{key.removesuffix('.weight')}"
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) > 1
    ]
    blocks = locate(layers)
    longest = 0
    for held in (one for block, one in blocks.modules.items() if block.section.numbered):
        theirs = [flat(one) for one in layers if one in held]
        assert ordered(sorted(theirs)) == theirs
        longest = max(longest, len(theirs) * (theirs != sorted(theirs)))
    assert longest >= 4, "an order that is not the alphabet's"
