"""Flux.2 and Klein: Flux with shared modulations and gated layers that diffusers leaves fused."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .flux import ATTENTION, EMBEDDERS, GATED_MLP, MLP, SWAPPED_FINAL, UNSPLIT, stream_sizes
from .renames import Packing, renamed, within

_SINGLE = (
    *UNSPLIT,
    # Names of Flux.1 that some trainers write. The gated layer is nine times as high as its
    # input is wide, and only four of its six rows' worth of MLP have a name there.
    Packing("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", ""), (1, 1, 1, 4, 2)),
    *renamed(
        ("linear2", "proj_out"),
        ("norm.query_norm", "attn.norm_q"),
        ("norm.key_norm", "attn.norm_k"),
    ),
)

FLUX2 = Architecture(
    name="flux2",
    title="Flux.2",
    recognise=(
        Condition(has_all=("double_stream_modulation_img.lin.weight",)),
        Condition(
            has_all=("single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight",),
            root="transformer.",
        ),
    ),
    blocks={"double_blocks": (5, 8), "single_blocks": (20, 24, 48)},
    sizes=stream_sizes(3072, 4096, 6144, gated=True),
    network_module="networks.lora_flux_2",
    diffusers="transformer.",
    packings=(
        *within("double_blocks.{}.", "transformer_blocks.{}.", (*ATTENTION, *GATED_MLP, *MLP)),
        *within("single_blocks.{}.", "single_transformer_blocks.{}.", _SINGLE),
        *within(
            "single_blocks.{}.",
            "single_blocks.{}.",
            (Packing("linear1", ("linear1_qkv", ""), parts=(3, 6)),),
        ),
        *renamed(
            ("time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1"),
            ("time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2"),
            ("guidance_in.in_layer", "time_guidance_embed.guidance_embedder.linear_1"),
            ("guidance_in.out_layer", "time_guidance_embed.guidance_embedder.linear_2"),
            ("double_stream_modulation_img.lin", "double_stream_modulation_img.linear"),
            ("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"),
            ("single_stream_modulation.lin", "single_stream_modulation.linear"),
            ("img_in", "x_embedder"),
            ("txt_in", "context_embedder"),
            ("final_layer.linear", "proj_out"),
        ),
        SWAPPED_FINAL,
        # The embedders under Flux.1's names; Flux.2 has no pooled text vector.
        *(one for one in EMBEDDERS if not one.native.startswith("vector_in")),
    ),
)
