"""MiniMax Music 3: the transformer of Stable Audio inside another; diffusers' names are others."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import same, within

_BLOCK = same("self_attn.to_qkv", "self_attn.to_out", "ff.ff.0.proj", "ff.ff.2")
_LAYERS = "diffusion_transformer.transformer.layers.{}."

MINIMAX_MUSIC = Architecture(
    name="minimax_music",
    title="MiniMax Music 3",
    recognise=(Condition(has_all=("cond_layer_logits", "latent_conditioners.0.weight")),),
    blocks={"layers": (36,), "transformer_blocks": (36,)},
    sizes={f".attn.to_{part}": ((2048, 2048),) for part in ("q", "k", "v", "out.0")},
    also=tuple(
        f"transformer_blocks.{{}}.attn.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")
    ),
    packings=(
        *within(_LAYERS, _LAYERS, _BLOCK),
        *same(
            "latent_conditioners.0",
            *(f"diffusion_transformer.transformer.project_{side}" for side in ("in", "out")),
            *(f"diffusion_transformer.to_timestep_embed.{layer}" for layer in (0, 2)),
            *(f"diffusion_transformer.{part}process_conv" for part in ("pre", "post")),
            "diffusion_transformer.timestep_features",
        ),
    ),
)
