"""Ideogram 4: one stream of fused attentions."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import Packing, renamed, same, within

_BLOCK = (
    Packing("attention.qkv", ("attention.to_q", "attention.to_k", "attention.to_v")),
    *renamed(("attention.o", "attention.to_out.0")),
    *same("attention.norm_q", "attention.norm_k"),
    *same(*(f"feed_forward.w{number}" for number in (1, 2, 3)), "adaln_modulation"),
    *same(*(f"{norm}_norm{number}" for norm in ("attention", "ffn") for number in (1, 2))),
)

IDEOGRAM4 = Architecture(
    name="ideogram4",
    title="Ideogram 4",
    recognise=(
        Condition(has_all=("embed_image_indicator.weight",)),
        Condition(has_all=("embed_image_indicator.weight",), root="transformer."),
    ),
    blocks={"layers": (34,)},
    sizes={
        ".attention.qkv": ((13824, 4608),),
        ".attention.o": ((4608, 4608),),
        ".feed_forward.w1": ((12288, 4608),),
        ".feed_forward.w2": ((4608, 12288),),
        ".feed_forward.w3": ((12288, 4608),),
    },
    diffusers="transformer.",
    packings=(
        *within("layers.{}.", "layers.{}.", _BLOCK),
        *same(
            *("input_proj", "llm_cond_proj", "t_embedding.mlp_in", "t_embedding.mlp_out"),
            *("adaln_proj", "embed_image_indicator", "llm_cond_norm"),
            *("final_layer.linear", "final_layer.adaln_modulation"),
        ),
    ),
)
