"""Flux.1 and Chroma: double and single stream blocks with fused projections."""

from __future__ import annotations

from dataclasses import replace

from .architecture import Architecture, Condition, Kohya, Sizes
from .renames import Packing, renamed, same, within

_BLOCKS = {"double_blocks": (19,), "single_blocks": (38,)}
_STREAMS = ("img_in.weight", "txt_in.weight", "double_blocks.0.img_attn.qkv.weight")
_DIFFUSERS = (
    "single_transformer_blocks.0.attn.to_q.weight",
    "transformer_blocks.0.attn.add_q_proj.weight",
    "x_embedder.weight",
)
_KOHYA = Kohya("native", {"clip_l": "lora_te1_", "t5xxl": "lora_te3_"})

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
SWAPPED_FINAL = Packing("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True)

# What Flux.1, Flux.2, Chroma and HunyuanVideo have in common.
ATTENTION = (
    Packing("img_attn.qkv", QKV),
    Packing("txt_attn.qkv", ADDED_QKV),
    *renamed(
        ("img_attn.proj", "attn.to_out.0"),
        ("txt_attn.proj", "attn.to_add_out"),
        ("img_attn.norm.query_norm", "attn.norm_q"),
        ("img_attn.norm.key_norm", "attn.norm_k"),
        ("txt_attn.norm.query_norm", "attn.norm_added_q"),
        ("txt_attn.norm.key_norm", "attn.norm_added_k"),
    ),
)
MLP = renamed(
    ("img_mlp.0", "ff.net.0.proj"),
    ("img_mlp.2", "ff.net.2"),
    ("txt_mlp.0", "ff_context.net.0.proj"),
    ("txt_mlp.2", "ff_context.net.2"),
)
MODULATION = renamed(("img_mod.lin", "norm1.linear"), ("txt_mod.lin", "norm1_context.linear"))
# Names of gated MLPs that LyCORIS and Flux.2 use.
GATED_MLP = renamed(
    ("img_mlp.0", "ff.linear_in"),
    ("img_mlp.2", "ff.linear_out"),
    ("txt_mlp.0", "ff_context.linear_in"),
    ("txt_mlp.2", "ff_context.linear_out"),
)
SINGLE = (
    Packing("linear1", (*QKV, "proj_mlp"), parts=(1, 1, 1, 4)),
    *renamed(
        ("linear2", "proj_out"),
        ("norm.query_norm", "attn.norm_q"),
        ("norm.key_norm", "attn.norm_k"),
    ),
)
SINGLE_MODULATION = Packing("modulation.lin", ("norm.linear",))
# ComfyUI's own name for the attention rows of a single block, which some train alone.
SINGLE_QKV = Packing("linear1", ("linear1_qkv", ""), parts=(3, 4))
EMBEDDERS = renamed(
    *((f"{native}.{layer}", f"{foreign}.linear_{number}")
      for native, foreign in (
          ("time_in", "time_text_embed.timestep_embedder"),
          ("vector_in", "time_text_embed.text_embedder"),
          ("guidance_in", "time_text_embed.guidance_embedder"),
      )
      for number, layer in enumerate(("in_layer", "out_layer"), start=1)),
)  # fmt: skip
_ENDS = renamed(
    ("img_in", "x_embedder"), ("txt_in", "context_embedder"), ("final_layer.linear", "proj_out")
)


def stream_sizes(*widths: int, gated: bool = False) -> Sizes:
    """Return the shapes of the blocks of models of these widths.

    Args:
        widths: Widths of the published models.
        gated: Whether half of the MLP's rows are gates for the other half.
    """
    ratio, rows = (3, 6) if gated else (4, 4)
    return {
        "_attn.qkv": tuple((3 * width, width) for width in widths),
        "_attn.proj": tuple((width, width) for width in widths),
        "_mlp.0": tuple((rows * width, width) for width in widths),
        "_mlp.2": tuple((width, ratio * width) for width in widths),
        "linear1": tuple(((3 + rows) * width, width) for width in widths),
        "linear2": tuple((width, (1 + ratio) * width) for width in widths),
        "_mod.lin": tuple((6 * width, width) for width in widths),
        "modulation.lin": tuple((3 * width, width) for width in widths),
    }


# Flux.2's names of the single blocks, which ComfyUI reads for all of the family.
UNSPLIT = renamed(("linear1", "attn.to_qkv_mlp_proj"), ("linear2", "attn.to_out"))

# Chroma has no modulations and no embedders: what these would give, one layer makes.
_SHARED = (
    *within("double_blocks.{}.", "transformer_blocks.{}.", (*ATTENTION, *MLP)),
    *within("double_blocks.{}.", "transformer_blocks.{}.", GATED_MLP),
    *within("single_blocks.{}.", "single_transformer_blocks.{}.", (*SINGLE, *UNSPLIT)),
    *within("single_blocks.{}.", "single_blocks.{}.", (SINGLE_QKV,)),
    *_ENDS,
)
_PACKINGS = (
    *_SHARED,
    *within("double_blocks.{}.", "transformer_blocks.{}.", MODULATION),
    *within("single_blocks.{}.", "single_transformer_blocks.{}.", (SINGLE_MODULATION,)),
    *EMBEDDERS,
    SWAPPED_FINAL,
)

FLUX = Architecture(
    name="flux",
    title="Flux.1",
    recognise=(
        Condition(
            has_all=(*_STREAMS, "guidance_in.in_layer.weight"),
            has_none=("double_stream_modulation_img.lin.weight",),
        ),
        Condition(
            has_all=(*_DIFFUSERS, "time_text_embed.guidance_embedder.linear_1.weight"),
            root="transformer.",
        ),
    ),
    blocks=_BLOCKS,
    sizes=stream_sizes(3072),
    modelspec="flux-1-dev",
    base_model_version="flux1",
    network_module="networks.lora_flux",
    kohya=_KOHYA,
    diffusers="transformer.",
    packings=_PACKINGS,
)

FLUX_SCHNELL = replace(
    FLUX,
    name="flux_schnell",
    title="Flux.1 schnell",
    recognise=(
        Condition(has_all=(*_STREAMS, "vector_in.in_layer.weight")),
        Condition(
            has_all=_DIFFUSERS,
            has_none=(
                *("time_embed.*", "timestep_embedder.*", "context_embedder.token_refiner.*"),
                *("distilled_guidance_layer.*", "double_stream_modulation_img.*"),
            ),
            root="transformer.",
        ),
    ),
    family="flux",
    modelspec="flux-1-schnell",
)

CHROMA = Architecture(
    name="chroma",
    title="Chroma",
    recognise=(
        Condition(has_any=("distilled_guidance_layer.*",)),
        Condition(has_any=("distilled_guidance_layer.*",), root="transformer."),
    ),
    blocks=_BLOCKS,
    sizes=stream_sizes(3072),
    modelspec="chroma",
    base_model_version="chroma",
    network_module="networks.lora_flux",
    kohya=_KOHYA,
    diffusers="transformer.",
    packings=(
        *_SHARED,
        *renamed(
            ("distilled_guidance_layer.layers.{}.in_layer", "distilled_guidance_layer.layers.{}.linear_1"),
            ("distilled_guidance_layer.layers.{}.out_layer", "distilled_guidance_layer.layers.{}.linear_2"),
        ),
        *same(
            "distilled_guidance_layer.in_proj",
            "distilled_guidance_layer.out_proj",
            "distilled_guidance_layer.norms.{}",
        ),
    ),
)  # fmt: skip
