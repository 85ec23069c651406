"""MiniMax H3: video and sound; diffusers splits what is fused here, which no table translates."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import Packing, renamed, same, with_leaves, within

_BLOCK = (
    *renamed(("attn.out_proj", "attn.to_out.0"), ("mlp.fc2", "ff.net.2")),
    *same("norm1", "norm2", "attn.q_norm", "attn.k_norm"),
    *same("attn.qkv_proj", "mlp.fc1", "adaln_proj.linear"),
)
_FOREIGN = ("attn.to_q", "attn.to_k", "attn.to_v", "ff.net.0.proj")

# Of whole models; the rows of the fused attention are as ComfyUI has them, not by heads.
_REST = (
    Packing("attn.qkv_proj", _FOREIGN[:3]),
    *renamed(("attn.q_norm", "attn.norm_q"), ("attn.k_norm", "attn.norm_k")),
    Packing("mlp.fc1", ("ff.net.0.proj",), swapped=True),
)

MINIMAX_H3 = Architecture(
    name="minimax_h3",
    title="MiniMax H3",
    recognise=(
        Condition(has_all=("video_patch_proj.weight", "audio_patch_proj.weight")),
        Condition(has_all=("audio_proj_in.weight", "transformer_blocks.0.adaln_proj.linear.weight"), root="transformer."),
    ),
    blocks={"blocks": (50,), "transformer_blocks": (50,)},
    sizes={
        ".attn.qkv_proj": ((21504, 5376),),
        ".attn.out_proj": ((5376, 7168),),
        ".mlp.fc2": ((5376, 14336),),
        ".attn.to_q": ((7168, 5376),),
        ".attn.to_k": ((7168, 5376),),
        ".attn.to_v": ((7168, 5376),),
        ".ff.net.0.proj": ((28672, 5376),),
    },
    also=(
        *(f"transformer_blocks.{{}}.{part}" for part in _FOREIGN),
        *(f"token_refiner.refiner_blocks.{{}}.{part}" for part in _FOREIGN),
        "norm_out.linear",
    ),
    packings=(
        *within("blocks.{}.", "transformer_blocks.{}.", _BLOCK),
        *within("token_refiner.blocks.{}.", "token_refiner.refiner_blocks.{}.", _BLOCK),
        *renamed(
            ("video_patch_proj", "proj_in"),
            ("audio_patch_proj", "audio_proj_in"),
            ("condition_proj", "context_embedder"),
            ("time_embedder.proj_in", "time_embedder.linear_1"),
            ("time_embedder.proj_out", "time_embedder.linear_2"),
            ("final_layer.video_out", "proj_out"),
            ("final_layer.audio_out", "audio_proj_out"),
        ),
        *same("final_layer.adaln_proj.linear", "final_layer.norm", "token_refiner.final_norm"),
    ),
    parameters=with_leaves(
        (
            *within("blocks.{}.", "transformer_blocks.{}.", _REST),
            *within("token_refiner.blocks.{}.", "token_refiner.refiner_blocks.{}.", _REST),
            *renamed(
                ("final_layer.norm", "norm_out.norm"),
                ("final_layer.adaln_proj.linear", "norm_out.linear"),
            ),
        ),
        *("weight", "bias"),
    ),
)  # fmt: skip
