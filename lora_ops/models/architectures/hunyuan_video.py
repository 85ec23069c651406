"""HunyuanVideo: the streams of Flux behind a refiner of the text."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .flux import (
    ATTENTION,
    EMBEDDERS,
    MLP,
    MODULATION,
    QKV,
    SINGLE,
    SINGLE_MODULATION,
    SWAPPED_FINAL,
    stream_sizes,
)
from .renames import Packing, renamed, within

_REFINER = (
    Packing("self_attn.qkv", QKV),
    *renamed(
        ("self_attn.proj", "attn.to_out.0"),
        ("mlp.0", "ff.net.0.proj"),
        ("mlp.2", "ff.net.2"),
        ("adaLN_modulation.1", "norm_out.linear"),
        ("norm1", "norm1"),
        ("norm2", "norm2"),
    ),
)
# The names of the published weights, which musubi-tuner and diffusion-pipe write.
_PUBLISHED = renamed(
    *((f"{stream}_{native}", f"{stream}_{published}")
      for stream in ("img", "txt")
      for native, published in (
          ("attn.qkv", "attn_qkv"),
          ("attn.proj", "attn_proj"),
          ("mod.lin", "mod.linear"),
          ("mlp.0", "mlp.fc1"),
          ("mlp.2", "mlp.fc2"),
      )),
)  # fmt: skip
_PUBLISHED_REFINER = renamed(
    ("self_attn.qkv", "self_attn_qkv"),
    ("self_attn.proj", "self_attn_proj"),
    ("mlp.0", "mlp.fc1"),
    ("mlp.2", "mlp.fc2"),
)
_TOKENS = "txt_in.individual_token_refiner.blocks.{}."

HUNYUAN_VIDEO = Architecture(
    name="hunyuan_video",
    title="HunyuanVideo",
    recognise=(
        Condition(has_all=("txt_in.individual_token_refiner.blocks.0.norm1.weight",)),
        Condition(has_any=("context_embedder.token_refiner.*",), root="transformer."),
    ),
    blocks={"double_blocks": (20, 54), "single_blocks": (40,)},
    sizes=stream_sizes(2048, 3072, 3584),
    modelspec="hunyuan-video",
    base_model_version="hunyuan_video",
    also=(
        *(f"byt5_in.fc{number}" for number in (1, 2, 3)),
        *(f"vision_in.proj.{number}" for number in (0, 1, 3, 4)),
        *("cond_type_embedding", "time_r_in.in_layer", "time_r_in.out_layer"),
        *(f"context_embedder_2.linear_{number}" for number in (1, 2, 3)),
        *(f"image_embedder.linear_{number}" for number in (1, 2)),
        *(f"{embedder}.timestep_embedder{r}.linear_{number}"
          for embedder in ("time_embed", "time_guidance_embed")
          for r in ("", "_r") for number in (1, 2)),
        "cond_type_embed",
    ),
    diffusers="transformer.",
    packings=(
        *within("double_blocks.{}.", "transformer_blocks.{}.", (*ATTENTION, *MLP, *MODULATION)),
        *within("single_blocks.{}.", "single_transformer_blocks.{}.", (*SINGLE, SINGLE_MODULATION)),
        *within(_TOKENS, "context_embedder.token_refiner.refiner_blocks.{}.", _REFINER),
        *EMBEDDERS,
        *renamed(
            ("img_in.proj", "x_embedder.proj"),
            ("txt_in.input_embedder", "context_embedder.proj_in"),
            *((f"txt_in.{native}.{layer}", f"context_embedder.time_text_embed.{foreign}.linear_{number}")
              for native, foreign in (("t_embedder", "timestep_embedder"), ("c_embedder", "text_embedder"))
              for number, layer in enumerate(("in_layer", "out_layer"), start=1)),
            ("final_layer.linear", "proj_out"),
        ),
        SWAPPED_FINAL,
        *within("double_blocks.{}.", "double_blocks.{}.", _PUBLISHED),
        *within("single_blocks.{}.", "single_blocks.{}.", renamed(("modulation.lin", "modulation.linear"))),
        *within(_TOKENS, _TOKENS, _PUBLISHED_REFINER),
    ),
)  # fmt: skip
