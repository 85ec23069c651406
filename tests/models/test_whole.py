"""Which matrices stay whole where a model is quantised: by names of real models."""

from __future__ import annotations

import pytest

from lorakit.lora_ops.models.architectures import ARCHITECTURES
from lorakit.lora_ops.models.whole import _BESIDES, stays_whole

WHOLE = {
    "flux": (
        *("img_in", "txt_in", "time_in.in_layer", "vector_in.out_layer", "guidance_in.in_layer"),
        *("final_layer.linear", "final_layer.adaLN_modulation.1"),
    ),
    "flux2": ("double_stream_modulation_img.lin", "single_stream_modulation.lin", "img_in"),
    "qwen_image": (
        *("img_in", "txt_in", "txt_norm", "proj_out", "norm_out.linear"),
        *("time_text_embed.timestep_embedder.linear_1", "transformer_blocks.0.img_mod.1"),
    ),
    "z_image": (
        *("x_embedder", "cap_embedder.1", "t_embedder.mlp.0", "layers.3.adaLN_modulation.0"),
        *("noise_refiner.0.attention.qkv", "final_layer.linear"),
    ),
    "wan": (
        *("patch_embedding", "text_embedding.0", "time_embedding.2", "time_projection.1"),
        *("head.head", "img_emb.proj.1"),
    ),
    "sdxl": ("time_embed.0", "label_emb.0.2", "input_blocks.1.0.emb_layers.1"),
    "chroma": ("distilled_guidance_layer.layers.0.in_layer", "img_in"),
    "ltxv": ("patchify_proj", "adaln_single.linear", "proj_out", "transformer_blocks.1.attn1.to_q"),
    "hidream": ("double_stream_blocks.0.block.ff_i.gate", "x_embedder.proj"),
    "sd3": ("x_embedder.proj", "context_embedder", "y_embedder.mlp.0", "final_layer.linear"),
}
STORED = {
    "flux": (
        *("double_blocks.0.img_mod.lin", "double_blocks.0.img_attn.qkv", "single_blocks.7.linear1"),
        "single_blocks.7.modulation.lin",
    ),
    "flux2": ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear2"),
    "qwen_image": (
        *("transformer_blocks.1.img_mod.1", "transformer_blocks.10.img_mod.1"),
        *("transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.net.0.proj"),
    ),
    "z_image": ("layers.3.attention.qkv", "layers.3.feed_forward.w1"),
    "wan": ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.0.cross_attn.k_img"),
    "sdxl": (
        *("input_blocks.4.1.proj_in", "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj"),
        "middle_block.1.transformer_blocks.3.attn2.to_k",
    ),
    "chroma": ("double_blocks.0.img_attn.qkv",),
    "ltxv": ("transformer_blocks.2.attn1.to_q", "transformer_blocks.11.ff.net.2"),
    "hidream": ("double_stream_blocks.0.block.ff_i.experts.0.w1",),
    "sd3": ("joint_blocks.0.x_block.attn.qkv", "joint_blocks.0.context_block.mlp.fc1"),
}


@pytest.mark.parametrize("model", WHOLE)
def test_by_model(model: str) -> None:
    assert [name for name in WHOLE[model] if not stays_whole(f"{name}.weight", model)] == []
    assert [name for name in STORED[model] if stays_whole(f"{name}.weight", model)] == []


def test_the_lists_are_of_models_that_are_known() -> None:
    known = {one.name for one in ARCHITECTURES}
    assert {*_BESIDES, *WHOLE} <= known


def test_an_unknown_model_has_the_common_list() -> None:
    assert stays_whole("img_in.weight", None)
    assert not stays_whole("transformer_blocks.0.img_mod.1.weight", None)
