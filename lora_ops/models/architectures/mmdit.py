"""Stable Diffusion 3 and AuraFlow: transformers over text and image at once."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .flux import ADDED_QKV, QKV, SWAPPED_FINAL
from .renames import Packing, renamed, same, within

_JOINT = (
    Packing("x_block.attn.qkv", QKV),
    Packing("context_block.attn.qkv", ADDED_QKV),
    Packing("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
    # The last block's has shift and scale alone, in the other order; the others' are alike.
    Packing("context_block.adaLN_modulation.1", ("norm1_context.linear",), swapped=True),
    *renamed(
        ("x_block.attn.proj", "attn.to_out.0"),
        ("x_block.attn.ln_q", "attn.norm_q"),
        ("x_block.attn.ln_k", "attn.norm_k"),
        ("x_block.attn2.proj", "attn2.to_out.0"),
        ("x_block.attn2.ln_q", "attn2.norm_q"),
        ("x_block.attn2.ln_k", "attn2.norm_k"),
        ("x_block.mlp.fc1", "ff.net.0.proj"),
        ("x_block.mlp.fc2", "ff.net.2"),
        ("x_block.adaLN_modulation.1", "norm1.linear"),
        ("context_block.attn.proj", "attn.to_add_out"),
        ("context_block.attn.ln_q", "attn.norm_added_q"),
        ("context_block.attn.ln_k", "attn.norm_added_k"),
        ("context_block.mlp.fc1", "ff_context.net.0.proj"),
        ("context_block.mlp.fc2", "ff_context.net.2"),
    ),
)
_AURA_GATED = (("c_fc1", "linear_1"), ("c_fc2", "linear_2"), ("c_proj", "out_projection"))
_AURA_DOUBLE = renamed(
    *zip(("attn.w2q", "attn.w2k", "attn.w2v"), QKV, strict=True),
    *zip(("attn.w1q", "attn.w1k", "attn.w1v"), ADDED_QKV, strict=True),
    ("attn.w2o", "attn.to_out.0"),
    ("attn.w1o", "attn.to_add_out"),
    ("modX.1", "norm1.linear"),
    ("modC.1", "norm1_context.linear"),
    *((f"mlpX.{native}", f"ff.{foreign}") for native, foreign in _AURA_GATED),
    *((f"mlpC.{native}", f"ff_context.{foreign}") for native, foreign in _AURA_GATED),
)
_AURA_SINGLE = renamed(
    *zip(("attn.w1q", "attn.w1k", "attn.w1v"), QKV, strict=True),
    ("attn.w1o", "attn.to_out.0"),
    ("modCX.1", "norm1.linear"),
    *((f"mlp.{native}", f"ff.{foreign}") for native, foreign in _AURA_GATED),
)

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
    blocks={"joint_blocks": (24, 38)},
    sizes={
        ".attn.qkv": ((4608, 1536), (7296, 2432)),
        ".attn2.qkv": ((4608, 1536),),
        ".attn.proj": ((1536, 1536), (2432, 2432)),
        ".mlp.fc1": ((6144, 1536), (9728, 2432)),
    },
    second_clip=True,
    network_module="networks.lora_sd3",
    diffusers="transformer.",
    packings=(
        *within("joint_blocks.{}.", "transformer_blocks.{}.", _JOINT),
        *renamed(
            ("x_embedder.proj", "pos_embed.proj"),
            ("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
            ("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
            ("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
            ("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
            ("final_layer.linear", "proj_out"),
        ),
        *same("context_embedder"),
        SWAPPED_FINAL,
    ),
    parameters=renamed(("pos_embed", "pos_embed.pos_embed")),
)

AURAFLOW = Architecture(
    name="auraflow",
    title="AuraFlow",
    recognise=(
        Condition(has_all=("double_layers.0.attn.w1q.weight",)),
        Condition(has_any=("joint_transformer_blocks.*",), root="transformer."),
    ),
    blocks={"double_layers": (4,), "single_layers": (32,)},
    sizes={".attn.w1q": ((3072, 3072),), ".attn.w2q": ((3072, 3072),)},
    diffusers="transformer.",
    packings=(
        *within("double_layers.{}.", "joint_transformer_blocks.{}.", _AURA_DOUBLE),
        *within("single_layers.{}.", "single_transformer_blocks.{}.", _AURA_SINGLE),
        *renamed(
            ("t_embedder.mlp.0", "time_step_proj.linear_1"),
            ("t_embedder.mlp.2", "time_step_proj.linear_2"),
            ("cond_seq_linear", "context_embedder"),
            ("init_x_linear", "pos_embed.proj"),
            ("final_linear", "proj_out"),
        ),
        Packing("modF.1", ("norm_out.linear",), swapped=True),
    ),
    parameters=(
        *renamed(("positional_encoding", "pos_embed.pos_embed")),
        *same("register_tokens"),
    ),
)
