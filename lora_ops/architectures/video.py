"""Models of moving pictures: Wan, HunyuanVideo, LTX-Video, Cosmos and Anima (an image model on Cosmos)."""

from __future__ import annotations

from .architecture import Architecture, Condition, TargetRule

_PREDICT2 = r"^blocks_\d+_((self|cross)_attn_([qkv]|output)_proj|mlp_layer[12])$"

WAN = Architecture(
    name="wan",
    title="Wan",
    recognise=(
        Condition(has_all=("head.modulation", "blocks.0.self_attn.q.weight")),
        Condition(
            has_all=("blocks.0.attn1.to_q.weight", "condition_embedder.time_proj.weight"),
            root="transformer.",
        ),
    ),
    targets=(
        TargetRule(r"^blocks_\d+_(self|cross)_attn_([qkvo]|[kv]_img)$"),
        TargetRule(r"^blocks_\d+_ffn_(0|2|net_0_proj|net_2)$"),
        TargetRule(r"^blocks_\d+_attn[12]_(to_[qkv]|to_out_0|add_[kv]_proj)$"),
    ),
    modelspec="wan2.1",
    base_model_version="wan",
    network_module="networks.lora_wan",
)

HUNYUAN_VIDEO = Architecture(
    name="hunyuan_video",
    title="HunyuanVideo",
    recognise=(
        Condition(has_all=("txt_in.individual_token_refiner.blocks.0.norm1.weight",)),
        Condition(has_any=("context_embedder.token_refiner.*",), root="transformer."),
    ),
    targets=(
        TargetRule(r"^txt_in_individual_token_refiner_|^context_embedder_token_refiner_"),
        TargetRule(r"^double_blocks_\d+_(img|txt)_(mlp_fc[12]|mod_linear)"),
        TargetRule(r"^single_blocks_\d+_modulation_linear"),
        TargetRule(r"^(double_blocks_19|single_blocks_3[89])_"),  # Flux has 19 and 38 blocks
    ),
    modelspec="hunyuan-video",
    base_model_version="hunyuan_video",
)

LTXV = Architecture(
    name="ltxv",
    title="LTX-Video",
    recognise=(
        Condition(
            has_all=("patchify_proj.weight", "adaln_single.emb.timestep_embedder.linear_1.bias")
        ),
    ),
    targets=(
        TargetRule(r"^transformer_blocks_\d+_(attn[12]|ff)_", 2048),
        TargetRule(r"^transformer_blocks_\d+_(attn[12]|ff)_", 4096),
        TargetRule(r"^transformer_blocks_\d+_(audio|video_to_audio|audio_to_video)_"),
    ),
)

ANIMA = Architecture(
    name="anima",
    title="Anima",
    recognise=(Condition(has_all=("llm_adapter.blocks.0.cross_attn.q_proj.weight",)),),
    targets=(
        TargetRule(r"^llm_adapter_"),
        TargetRule(_PREDICT2),
    ),
    modelspec="anima-preview",
    network_module="networks.lora_anima",
)

COSMOS = Architecture(
    name="cosmos",
    title="Cosmos Predict",
    recognise=(
        Condition(has_all=("blocks.0.mlp.layer1.weight",)),
        Condition(has_all=("blocks.block0.blocks.0.block.attn.to_q.0.weight",)),
    ),
    targets=(
        TargetRule(_PREDICT2, shared=True),
        TargetRule(r"^blocks_block\d+_blocks_\d+_block_"),
    ),
)
