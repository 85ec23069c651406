"""Transformers for images, each with names of its own."""

from __future__ import annotations

from .architecture import Architecture, Condition, Size, TargetRule

_NEXT_DIT = r"^(layers|noise_refiner|context_refiner)_\d+_"
_REFINER = ("cap_embedder.1.weight", "noise_refiner.0.attention.k_norm.weight")

QWEN_IMAGE = Architecture(
    name="qwen_image",
    title="Qwen-Image",
    recognise=(
        Condition(
            has_all=(
                "txt_norm.weight",
                "img_in.weight",
                "transformer_blocks.0.attn.add_q_proj.weight",
            ),
            has_none=("transformer_blocks.0.img_mlp.w1.weight",),  # Lens
        ),
    ),
    targets=(
        TargetRule(r"^transformer_blocks_\d+_(img|txt)_(mlp|mod)_"),
        TargetRule(r"^transformer_blocks_(3[89]|[45]\d)_attn_"),  # Stable Diffusion 3 has 38 blocks
    ),
    modelspec="Qwen-Image",
    base_model_version="qwen_image",
    network_module="networks.lora_qwen_image",
)

Z_IMAGE = Architecture(
    name="z_image",
    title="Z-Image",
    recognise=(
        Condition(has_all=_REFINER, has_any=("cap_pad_token", "x_pad_token")),
        Condition(has_all=_REFINER, sizes=(Size("cap_embedder.1.weight", axis=0, size=3840),)),
        Condition(has_any=("all_x_embedder.*",), root="transformer."),
    ),
    targets=(
        TargetRule(_NEXT_DIT + r"(attention_to_(q|k|v|out_0)|adaLN_modulation_0)$"),
        TargetRule(r"^layers_(2[6-9])_(attention|feed_forward)_"),  # Lumina 2 has 26 layers
        TargetRule(_NEXT_DIT + r"attention_(qkv|out)$", shared=True),
    ),
    modelspec="Z-Image",
    base_model_version="z_image",
    network_module="networks.lora_zimage",
)

LUMINA2 = Architecture(
    name="lumina2",
    title="Lumina 2",
    recognise=(Condition(has_all=_REFINER),),
    targets=(TargetRule(_NEXT_DIT + r"(attention_(qkv|out)|attn_to_|feed_forward_w[123])"),),
    modelspec="lumina-2",
    base_model_version="lumina2",
    network_module="networks.lora_lumina",
)

PIXART = Architecture(
    name="pixart",
    title="PixArt",
    recognise=(
        Condition(has_all=("t_block.1.weight",)),
        Condition(
            has_all=("adaln_single.linear.weight", "pos_embed.proj.weight"), root="transformer."
        ),
    ),
    targets=(
        TargetRule(r"^transformer_blocks_\d+_(attn[12]|ff)_", 1152),
        TargetRule(r"^blocks_\d+_cross_attn_(q|kv)_linear$"),
    ),
)

HUNYUAN_DIT = Architecture(
    name="hunyuan_dit",
    title="HunyuanDiT",
    recognise=(Condition(has_all=("mlp_t5.0.weight",)),),
    targets=(TargetRule(r"^blocks_\d+_(attn1_Wqkv|attn2_(q_proj|kv_proj))$"),),
)

HIDREAM = Architecture(
    name="hidream",
    title="HiDream",
    recognise=(Condition(has_all=("caption_projection.0.linear.weight",)),),
    targets=(TargetRule(r"^(double|single)_stream_blocks_\d+_block_"),),
)

KREA2 = Architecture(
    name="krea2",
    title="Krea 2",
    recognise=(Condition(has_all=("txtfusion.projector.weight",)),),
    targets=(TargetRule(r"^txtfusion_|^blocks_\d+_attn_w[qkvo]$"),),
    modelspec="Krea-2",
    base_model_version="krea2",
)

KANDINSKY5 = Architecture(
    name="kandinsky5",
    title="Kandinsky 5",
    recognise=(
        Condition(has_all=("visual_transformer_blocks.0.cross_attention.key_norm.weight",)),
    ),
    targets=(TargetRule(r"^visual_transformer_blocks_\d+_"),),
    modelspec="Kandinsky-5",
    base_model_version="kandinsky5",
    network_module="networks.lora_kandinsky",
)
