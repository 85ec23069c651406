"""Hunyuan3D: 2.0 has the streams of Flux, 2.1 blocks with experts; no other program renames them."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .flux import stream_sizes
from .renames import same, within

_STREAM = same(
    *(f"{stream}_{part}" for stream in ("img", "txt")
      for part in ("mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2")),
    *(f"{stream}_attn.norm.{part}_norm" for stream in ("img", "txt") for part in ("query", "key")),
)  # fmt: skip

HUNYUAN3D = Architecture(
    name="hunyuan3d",
    title="Hunyuan3D 2.0",
    recognise=(Condition(has_all=("latent_in.weight", "cond_in.weight")),),
    blocks={"double_blocks": (8, 16), "single_blocks": (16, 32)},
    sizes=stream_sizes(1024),
    packings=(
        *within("double_blocks.{}.", "double_blocks.{}.", _STREAM),
        *within("single_blocks.{}.", "single_blocks.{}.", same("linear1", "linear2", "modulation.lin", "norm.query_norm", "norm.key_norm")),
        *same(
            *("latent_in", "cond_in", "final_layer.linear", "final_layer.adaLN_modulation.1"),
            *(f"{part}_in.{layer}_layer" for part in ("time", "guidance") for layer in ("in", "out")),
        ),
    ),
)  # fmt: skip

_EXPERT = ("net.0.proj", "net.2")
_BLOCK = same(
    *(f"attn{number}.{part}" for number in (1, 2) for part in ("to_q", "to_k", "to_v", "out_proj")),
    *(f"attn{number}.{part}_norm" for number in (1, 2) for part in "qk"),
    *("norm1", "norm2", "norm3", "skip_norm"),
    *("mlp.fc1", "mlp.fc2", "skip_linear", "moe.gate"),
    *(f"moe.experts.{{}}.{layer}" for layer in _EXPERT),
    *(f"moe.shared_experts.{layer}" for layer in _EXPERT),
)

HUNYUAN3D_2_1 = Architecture(
    name="hunyuan3d_2_1",
    title="Hunyuan3D 2.1",
    recognise=(Condition(has_all=("t_embedder.mlp.2.weight", "blocks.0.attn1.k_norm.weight"), has_none=("mlp_t5.*",)),),
    blocks={"blocks": (21,), "experts": (8,)},
    sizes={
        ".attn1.to_q": ((2048, 2048),),
        ".attn2.to_q": ((2048, 2048),),
        ".attn2.to_k": ((2048, 1024),),
        ".attn2.to_v": ((2048, 1024),),
        ".out_proj": ((2048, 2048),),
        ".mlp.fc1": ((8192, 2048),),
        ".mlp.fc2": ((2048, 8192),),
    },
    packings=(
        *within("blocks.{}.", "blocks.{}.", _BLOCK),
        *same("x_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2", "final_layer.linear", "final_layer.norm_final"),
    ),
)  # fmt: skip
