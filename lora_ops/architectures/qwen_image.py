"""Qwen-Image: its modules have the same names everywhere."""

from __future__ import annotations

from .architecture import Architecture, Condition, TargetRule
from .renames import same, within

_BLOCK = same(
    *(f"attn.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
    *(f"attn.add_{part}_proj" for part in "qkv"),
    *(f"attn.norm_{part}" for part in ("q", "k", "added_q", "added_k")),
    *(f"{stream}_mod.1" for stream in ("img", "txt")),
    *(f"{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2")),
)

QWEN_IMAGE = Architecture(
    name="qwen_image",
    title="Qwen-Image",
    recognise=(
        Condition(
            has_all=(
                "txt_norm.weight",
                "img_in.weight",
                "transformer_blocks.0.attn.add_q_proj.weight",
            ),
            has_none=("transformer_blocks.0.img_mlp.w1.weight",),  # Lens
        ),
    ),
    targets=(
        TargetRule(r"^transformer_blocks_\d+_(img|txt)_(mlp|mod)_"),
        TargetRule(r"^transformer_blocks_(3[89]|[45]\d)_attn_"),  # Stable Diffusion 3 has 38 blocks
    ),
    modelspec="Qwen-Image",
    base_model_version="qwen_image",
    network_module="networks.lora_qwen_image",
    diffusers="transformer.",
    packings=(
        *within("transformer_blocks.{}.", "transformer_blocks.{}.", _BLOCK),
        *same(
            "time_text_embed.timestep_embedder.linear_1",
            "time_text_embed.timestep_embedder.linear_2",
            "time_text_embed.addition_t_embedding",
            *("txt_norm", "img_in", "txt_in", "norm_out.linear", "proj_out"),
        ),
    ),
)
