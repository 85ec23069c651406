"""Mochi: two streams of different widths."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import Packing, renamed, same, with_leaves, within

_BLOCK = (
    Packing("attn.qkv_x", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
    *renamed(
        ("attn.proj_x", "attn1.to_out.0"),
        ("attn.proj_y", "attn1.to_add_out"),
        ("mod_x", "norm1.linear"),
        ("mlp_x.w2", "ff.net.2"),
        ("mlp_y.w2", "ff_context.net.2"),
    ),
    *same(*(f"attn.{part}_norm_{stream}" for part in "qk" for stream in "xy")),
    *same("attn.qkv_y", "mod_y", "mlp_x.w1", "mlp_y.w1"),
)
# Not square, or with halves in the other order: diffusers' names of them are not translated.
_FOREIGN = (
    *(f"attn1.add_{part}_proj" for part in "qkv"),
    *("ff.net.0.proj", "ff_context.net.0.proj", "norm1_context.linear", "norm1_context.linear_1"),
)

# Of whole models.
_REST = (
    Packing("attn.qkv_y", _FOREIGN[:3]),
    *renamed(
        ("mod_y", "norm1_context.linear"),
        ("mod_y", "norm1_context.linear_1"),
        ("attn.proj_y", "attn1.to_add_out"),
        ("attn.q_norm_x", "attn1.norm_q"),
        ("attn.k_norm_x", "attn1.norm_k"),
        ("attn.q_norm_y", "attn1.norm_added_q"),
        ("attn.k_norm_y", "attn1.norm_added_k"),
    ),
    Packing("mlp_x.w1", ("ff.net.0.proj",), swapped=True),
    Packing("mlp_y.w1", ("ff_context.net.0.proj",), swapped=True),
)

MOCHI = Architecture(
    name="mochi",
    title="Mochi",
    recognise=(
        Condition(has_all=("t5_yproj.weight",)),
        Condition(has_all=("time_embed.caption_proj.weight",), root="transformer."),
    ),
    blocks={"blocks": (48,), "transformer_blocks": (48,)},
    sizes={
        ".attn.qkv_x": ((9216, 3072),),
        ".attn.proj_x": ((3072, 3072),),
        ".attn.proj_y": ((1536, 3072),),
        "attn1.add_q_proj": ((3072, 1536),),
        "attn1.add_k_proj": ((3072, 1536),),
        "attn1.add_v_proj": ((3072, 1536),),
        ".mlp_x.w2": ((3072, 8192),),
        ".ff.net.0.proj": ((16384, 3072),),
    },
    also=(
        *(f"transformer_blocks.{{}}.{part}" for part in _FOREIGN),
        *(f"time_embed.pooler.to_{part}" for part in ("q", "kv", "out")),
        "norm_out.linear",
    ),
    packings=(
        *within("blocks.{}.", "transformer_blocks.{}.", _BLOCK),
        *renamed(
            ("x_embedder.proj", "patch_embed.proj"),
            ("t_embedder.mlp.0", "time_embed.timestep_embedder.linear_1"),
            ("t_embedder.mlp.2", "time_embed.timestep_embedder.linear_2"),
            ("t5_yproj", "time_embed.caption_proj"),
            ("final_layer.linear", "proj_out"),
        ),
        *same(*(f"t5_y_embedder.to_{part}" for part in ("q", "kv", "out")), "final_layer.mod"),
    ),
    parameters=(
        *with_leaves(
            (
                *within("blocks.{}.", "transformer_blocks.{}.", _REST),
                *renamed(
                    *(
                        (f"t5_y_embedder.to_{part}", f"time_embed.pooler.to_{part}")
                        for part in ("q", "kv", "out")
                    )
                ),
                Packing("final_layer.mod", ("norm_out.linear",), swapped=True),
            ),
            *("weight", "bias"),
        ),
        *same("pos_frequencies"),
    ),
)
