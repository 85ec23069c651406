"""Stable Audio: a transformer under its own prefix; diffusers' fused and gated layers are others."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import Packing, renamed, same, with_leaves, within

_BLOCK = same(
    *("self_attn.to_qkv", "self_attn.to_out"),
    *("cross_attn.to_q", "cross_attn.to_kv", "cross_attn.to_out"),
    *("ff.ff.0.proj", "ff.ff.2", "to_local_embed.0", "to_local_embed.2"),
)
_FOREIGN = (
    *(f"attn{number}.to_{part}" for number in (1, 2) for part in ("q", "k", "v", "out.0")),
    *("ff.net.0.proj", "ff.net.2"),
)
_EMBEDDERS = (
    ("to_timestep_embed", "timestep_proj"),
    ("to_global_embed", "global_proj"),
    ("to_cond_embed", "cross_attention_proj"),
)

_OUTSIDE = (
    *("project_in", "project_out"),
    *("global_cond_embedder.0", "global_cond_embedder.2"),
)

# Of whole models.
_ATTENTIONS = (
    Packing("self_attn.to_qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
    Packing("cross_attn.to_kv", ("attn2.to_k", "attn2.to_v")),
    *renamed(
        ("self_attn.to_out", "attn1.to_out.0"),
        ("cross_attn.to_q", "attn2.to_q"),
        ("cross_attn.to_out", "attn2.to_out.0"),
        *((f"ff.ff.{layer}", f"ff.net.{layer}") for layer in ("0.proj", "2")),
    ),
)
_NORMS = renamed(
    *(
        (f"{native}.{leaf}", f"{foreign}.{other}")
        for native, foreign in (
            ("pre_norm", "norm1"),
            ("cross_attend_norm", "norm2"),
            ("ff_norm", "norm3"),
        )
        for leaf, other in (("gamma", "weight"), ("beta", "bias"))
    )
)

STABLE_AUDIO = Architecture(
    name="stable_audio",
    title="Stable Audio",
    recognise=(
        Condition(has_all=("transformer.rotary_pos_emb.inv_freq",)),
        Condition(has_all=("cross_attention_proj.0.weight", "timestep_proj.0.weight"), root="transformer."),
    ),
    blocks={"layers": (24,), "transformer_blocks": (24,)},
    sizes={
        ".attn1.to_q": ((1536, 1536),),
        ".attn1.to_k": ((1536, 1536),),
        ".attn1.to_v": ((1536, 1536),),
        ".attn1.to_out.0": ((1536, 1536),),
        ".attn2.to_q": ((1536, 1536),),
        ".attn2.to_k": ((768, 768),),
        ".attn2.to_v": ((768, 768),),
        ".attn2.to_out.0": ((1536, 1536),),
        ".ff.net.0.proj": ((12288, 1536),),
        ".ff.net.2": ((1536, 6144),),
    },
    also=tuple(f"transformer_blocks.{{}}.{part}" for part in _FOREIGN),
    packings=(
        *within("transformer.layers.{}.", "transformer.layers.{}.", _BLOCK),
        *renamed(
            *((f"{native}.{layer}", f"{foreign}.{layer}")
              for native, foreign in _EMBEDDERS for layer in (0, 2)),
            ("transformer.project_in", "proj_in"),
            ("transformer.project_out", "proj_out"),
        ),
        *same("timestep_features", "preprocess_conv", "postprocess_conv"),
        *same(*(f"transformer.global_cond_embedder.{layer}" for layer in (0, 2))),
        # Prefixes that end in `transformer.` are taken off whole: names without it are known, too.
        *within("transformer.layers.{}.", "layers.{}.", _BLOCK),
        *renamed(*((f"transformer.{part}", part) for part in _OUTSIDE)),
    ),
    parameters=within(
        "transformer.layers.{}.",
        "transformer_blocks.{}.",
        (*with_leaves(_ATTENTIONS, "weight", "bias"), *_NORMS),
    ),
)  # fmt: skip
