"""Lens: the blocks of Qwen-Image with fused attentions and gated MLPs."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import same, within

_BLOCK = same(
    *(f"attn.{part}" for part in ("img_qkv", "txt_qkv", "to_out.0", "to_add_out")),
    *(f"attn.norm_{part}" for part in ("q", "k", "added_q", "added_k")),
    *(f"{stream}_norm{number}" for stream in ("img", "txt") for number in (1, 2)),
    *(f"{stream}_mod.1" for stream in ("img", "txt")),
    *(f"{stream}_mlp.w{number}" for stream in ("img", "txt") for number in (1, 2, 3)),
)

LENS = Architecture(
    name="lens",
    title="Lens",
    recognise=(Condition(has_all=("img_in.weight", "transformer_blocks.0.img_mlp.w1.weight")),),
    blocks={"transformer_blocks": (48,)},
    sizes={
        ".attn.to_out.0": ((1536, 1536),),
        ".attn.to_add_out": ((1536, 1536),),
        "_mod.1": ((9216, 1536),),
    },
    packings=(
        *within("transformer_blocks.{}.", "transformer_blocks.{}.", _BLOCK),
        *same(
            *(f"time_text_embed.timestep_embedder.linear_{number}" for number in (1, 2)),
            *("txt_norm", "txt_norm.{}", "img_in", "txt_in", "norm_out.linear", "proj_out"),
        ),
    ),
)
