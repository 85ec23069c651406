"""Flux and its descendants: double and single stream blocks with fused projections."""

from __future__ import annotations

from dataclasses import replace

from .architecture import Architecture, Condition, Kohya, TargetRule

_BLOCKS = (
    r"^(double_blocks_\d+_(img|txt)_(attn|mlp|mod)_|single_blocks_\d+_(linear[12]|modulation_lin))"
)
_STREAMS = ("img_in.weight", "txt_in.weight", "double_blocks.0.img_attn.qkv.weight")
_DIFFUSERS = (
    "single_transformer_blocks.0.attn.to_q.weight",
    "transformer_blocks.0.attn.add_q_proj.weight",
    "x_embedder.weight",
)
_KOHYA = Kohya("native", {"clip_l": "lora_te1_", "t5xxl": "lora_te3_"})

FLUX = Architecture(
    name="flux",
    title="Flux.1",
    recognise=(
        Condition(has_all=(*_STREAMS, "guidance_in.in_layer.weight")),
        Condition(
            has_all=(*_DIFFUSERS, "time_text_embed.guidance_embedder.linear_1.weight"),
            root="transformer.",
        ),
    ),
    targets=(
        TargetRule(_BLOCKS),
        TargetRule(r"^single_transformer_blocks_\d+_(attn_to_[qkv]|proj_mlp|proj_out|norm_linear)"),
    ),
    modelspec="flux-1-dev",
    base_model_version="flux1",
    network_module="networks.lora_flux",
    kohya=_KOHYA,
)

FLUX_SCHNELL = replace(
    FLUX,
    name="flux_schnell",
    title="Flux.1 schnell",
    recognise=(
        Condition(has_all=(*_STREAMS, "vector_in.in_layer.weight")),
        Condition(has_all=_DIFFUSERS, root="transformer."),
    ),
    targets=(TargetRule(_BLOCKS, shared=True),),
    modelspec="flux-1-schnell",
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
    targets=(
        TargetRule(r"^(double_stream_modulation_|single_stream_modulation_)"),
        TargetRule(r"^single_transformer_blocks_\d+_attn_to_(qkv_mlp_proj|out$)"),
        TargetRule(_BLOCKS, shared=True),
    ),
    network_module="networks.lora_flux_2",
)

CHROMA = Architecture(
    name="chroma",
    title="Chroma",
    recognise=(
        Condition(has_any=("distilled_guidance_layer.*",)),
        Condition(has_any=("distilled_guidance_layer.*",), root="transformer."),
    ),
    targets=(TargetRule(r"^distilled_guidance_layer_"), TargetRule(_BLOCKS, shared=True)),
    modelspec="chroma",
    base_model_version="chroma",
    network_module="networks.lora_flux",
    kohya=_KOHYA,
)
