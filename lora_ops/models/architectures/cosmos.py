"""Cosmos Predict2, and Anima: an image model on Cosmos with an adapter for a language model."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import renamed, same, within

_SIZES = {
    "self_attn.q_proj": (
        (2048, 2048),
        (4096, 4096),
        (5120, 5120),
        (1024, 1024),
    ),  # the last of the adapter
    "mlp.layer1": ((8192, 2048), (16384, 4096), (20480, 5120)),
    "cross_attn.k_proj": ((2048, 1024), (4096, 1024), (5120, 1024), (1024, 1024)),
    "cross_attn.v_proj": ((2048, 1024), (4096, 1024), (5120, 1024), (1024, 1024)),
}
_ATTENTIONS = (("self_attn", "attn1"), ("cross_attn", "attn2"))
_PARTS = ("self_attn", "cross_attn", "mlp")
_BLOCK = renamed(
    *((f"{native}.{part}_proj", f"{foreign}.to_{part}")
      for native, foreign in _ATTENTIONS for part in "qkv"),
    *((f"{native}.output_proj", f"{foreign}.to_out.0") for native, foreign in _ATTENTIONS),
    *((f"{native}.{part}_norm", f"{foreign}.norm_{part}")
      for native, foreign in _ATTENTIONS for part in "qk"),
    ("mlp.layer1", "ff.net.0.proj"),
    ("mlp.layer2", "ff.net.2"),
    *((f"adaln_modulation_{part}.{number}", f"norm{place}.linear_{number}")
      for place, part in enumerate(_PARTS, start=1) for number in (1, 2)),
)  # fmt: skip
_PACKINGS = (
    *within("blocks.{}.", "transformer_blocks.{}.", _BLOCK),
    *renamed(
        ("x_embedder.proj.1", "patch_embed.proj"),
        ("t_embedder.1.linear_1", "time_embed.t_embedder.linear_1"),
        ("t_embedder.1.linear_2", "time_embed.t_embedder.linear_2"),
        ("t_embedding_norm", "time_embed.norm"),
        ("final_layer.adaln_modulation.1", "norm_out.linear_1"),
        ("final_layer.adaln_modulation.2", "norm_out.linear_2"),
        ("final_layer.linear", "proj_out"),
    ),
)
# diffusers has this adapter as a model of its own beside the transformer.
_ADAPTER = same(
    *(f"{name}.{part}_proj" for name in ("self_attn", "cross_attn") for part in "qkvo"),
    *(f"{name}.{part}_norm" for name in ("self_attn", "cross_attn") for part in "qk"),
    *("mlp.0", "mlp.2", "norm_self_attn", "norm_cross_attn", "norm_mlp"),
)

ANIMA = Architecture(
    name="anima",
    title="Anima",
    recognise=(Condition(has_all=("llm_adapter.blocks.0.cross_attn.q_proj.weight",)),),
    blocks={"blocks": (28,)},
    sizes=_SIZES,
    modelspec="anima-preview",
    network_module="networks.lora_anima",
    diffusers="transformer.",
    packings=(
        *_PACKINGS,
        *within("llm_adapter.blocks.{}.", "llm_adapter.blocks.{}.", _ADAPTER),
        *same("llm_adapter.out_proj", "llm_adapter.norm", "llm_adapter.embed"),
    ),
)

# Blocks of the first Cosmos, which have a name behind their number.
_FIRST = tuple(
    f"blocks.block{number}.blocks.{{}}.{part}"
    for number in range(36)
    for part in (
        *(f"block.attn.to_{part}.0" for part in ("q", "k", "v", "out")),
        *("block.layer1", "block.layer2", "adaLN_modulation.1", "adaLN_modulation.2"),
    )
)

COSMOS = Architecture(
    name="cosmos",
    title="Cosmos Predict",
    recognise=(
        Condition(has_all=("blocks.0.mlp.layer1.weight",)),
        Condition(has_all=("blocks.block0.blocks.0.block.attn.to_q.0.weight",)),
        Condition(
            has_all=(
                "time_embed.t_embedder.linear_1.weight",
                "transformer_blocks.0.norm1.linear_1.weight",
            ),
            root="transformer.",
        ),
    ),
    blocks={"blocks": (28, 36)},
    sizes=_SIZES,
    also=(*_FIRST, *(f"final_layer.adaLN_modulation.{part}" for part in (1, 2))),
    diffusers="transformer.",
    packings=_PACKINGS,
)
