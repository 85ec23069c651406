"""PixArt and HunyuanDiT: cross-attention over the text."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .flux import SWAPPED_FINAL
from .renames import Packing, renamed, same, with_leaves, within

_BLOCK = (
    Packing("attn.qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
    Packing("cross_attn.kv_linear", ("attn2.to_k", "attn2.to_v")),
    *renamed(
        ("attn.proj", "attn1.to_out.0"),
        ("cross_attn.q_linear", "attn2.to_q"),
        ("cross_attn.proj", "attn2.to_out.0"),
        ("mlp.fc1", "ff.net.0.proj"),
        ("mlp.fc2", "ff.net.2"),
    ),
)
_EMBEDDERS = (
    ("t_embedder", "timestep_embedder"),
    ("csize_embedder", "resolution_embedder"),
    ("ar_embedder", "aspect_ratio_embedder"),
)

PIXART = Architecture(
    name="pixart",
    title="PixArt",
    recognise=(
        Condition(has_all=("t_block.1.weight", "y_embedder.y_proj.fc1.weight")),
        Condition(
            has_all=("adaln_single.linear.weight", "pos_embed.proj.weight"), root="transformer."
        ),
    ),
    blocks={"blocks": (28,)},
    sizes={
        ".attn.qkv": ((3456, 1152),),
        ".attn.proj": ((1152, 1152),),
        ".cross_attn.q_linear": ((1152, 1152),),
        ".cross_attn.kv_linear": ((2304, 1152),),
        ".cross_attn.proj": ((1152, 1152),),
        ".mlp.fc1": ((4608, 1152),),
    },
    diffusers="transformer.",
    packings=(
        *within("blocks.{}.", "transformer_blocks.{}.", _BLOCK),
        *renamed(
            *((f"{native}.mlp.{place}", f"adaln_single.emb.{foreign}.linear_{number}")
              for native, foreign in _EMBEDDERS for place, number in ((0, 1), (2, 2))),
            ("t_block.1", "adaln_single.linear"),
            ("x_embedder.proj", "pos_embed.proj"),
            ("y_embedder.y_proj.fc1", "caption_projection.linear_1"),
            ("y_embedder.y_proj.fc2", "caption_projection.linear_2"),
            ("final_layer.linear", "proj_out"),
        ),
    ),
    parameters=renamed(
        ("blocks.{}.scale_shift_table", "transformer_blocks.{}.scale_shift_table"),
        ("final_layer.scale_shift_table", "scale_shift_table"),
    ),
)  # fmt: skip

# HunyuanDiT's norm2 and norm3 are swapped in diffusers: among the parameters, as no adapter has them.
_HUNYUAN_BLOCK = (
    Packing("attn1.Wqkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
    Packing("attn2.kv_proj", ("attn2.to_k", "attn2.to_v")),
    *renamed(
        ("attn1.out_proj", "attn1.to_out.0"),
        ("attn2.q_proj", "attn2.to_q"),
        ("attn2.out_proj", "attn2.to_out.0"),
        ("default_modulation.1", "norm1.linear"),
        ("mlp.fc1", "ff.net.0.proj"),
        ("mlp.fc2", "ff.net.2"),
        ("norm1", "norm1.norm"),
        *((f"{attention}.{part}_norm", f"{attention}.norm_{part}")
          for attention in ("attn1", "attn2") for part in "qk"),
    ),
    *same("skip_linear", "skip_norm"),
)  # fmt: skip

HUNYUAN_DIT = Architecture(
    name="hunyuan_dit",
    title="HunyuanDiT",
    recognise=(
        Condition(has_all=("mlp_t5.0.weight",)),
        Condition(has_all=("time_extra_emb.pooler.q_proj.weight",), root="transformer."),
    ),
    blocks={"blocks": (40,)},
    sizes={
        ".attn1.Wqkv": ((4224, 1408),),
        ".attn2.q_proj": ((1408, 1408),),
        ".out_proj": ((1408, 1408),),
        ".attn2.kv_proj": ((2816, 1024),),
        ".mlp.fc1": ((6144, 1408),),
    },
    # diffusers has such a model and no loader of adapters for it: its names are read, not written.
    packings=(
        *within("blocks.{}.", "blocks.{}.", _HUNYUAN_BLOCK),
        *renamed(
            ("t_embedder.mlp.0", "time_extra_emb.timestep_embedder.linear_1"),
            ("t_embedder.mlp.2", "time_extra_emb.timestep_embedder.linear_2"),
            ("extra_embedder.0", "time_extra_emb.extra_embedder.linear_1"),
            ("extra_embedder.2", "time_extra_emb.extra_embedder.linear_2"),
            *((f"pooler.{part}_proj", f"time_extra_emb.pooler.{part}_proj") for part in "qkvc"),
            ("mlp_t5.0", "text_embedder.linear_1"),
            ("mlp_t5.2", "text_embedder.linear_2"),
            ("x_embedder.proj", "pos_embed.proj"),
            ("final_layer.linear", "proj_out"),
        ),
        SWAPPED_FINAL,
    ),
    parameters=(
        *with_leaves(
            renamed(("blocks.{}.norm2", "blocks.{}.norm3"), ("blocks.{}.norm3", "blocks.{}.norm2")),
            *("weight", "bias"),
        ),
        *renamed(
            ("pooler.positional_embedding", "time_extra_emb.pooler.positional_embedding"),
            ("style_embedder.weight", "time_extra_emb.style_embedder.weight"),
        ),
        *same("text_embedding_padding"),
    ),
)
