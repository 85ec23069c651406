"""Stable Diffusion 3 and AuraFlow: transformers over text and image at once."""

from __future__ import annotations

from .architecture import Architecture, Condition, TargetRule

SD3 = Architecture(
    name="sd3",
    title="Stable Diffusion 3",
    recognise=(
        Condition(has_all=("joint_blocks.0.context_block.attn.qkv.weight",)),
        Condition(
            has_all=("transformer_blocks.0.norm1_context.linear.weight", "pos_embed.proj.weight"),
            has_none=("single_transformer_blocks.*",),
            root="transformer.",
        ),
    ),
    targets=(
        TargetRule(r"^joint_blocks_\d+_(x|context)_block_"),
        TargetRule(r"^transformer_blocks_\d+_(attn_add_[qkv]_proj|ff_context_)"),
    ),
    network_module="networks.lora_sd3",
)

AURAFLOW = Architecture(
    name="auraflow",
    title="AuraFlow",
    recognise=(
        Condition(has_all=("double_layers.0.attn.w1q.weight",)),
        Condition(has_any=("joint_transformer_blocks.*",), root="transformer."),
    ),
    targets=(
        TargetRule(r"^(double|single)_layers_\d+_(attn_w[12]|mlp)"),
        TargetRule(r"^joint_transformer_blocks_"),
    ),
)
