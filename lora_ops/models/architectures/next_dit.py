"""Lumina 2 and Z-Image: one transformer, told apart by width and by how it pads."""

from __future__ import annotations

from .architecture import Architecture, Condition, Size
from .renames import Packing, renamed, same, within

_REFINER = ("cap_embedder.1.weight", "noise_refiner.0.attention.k_norm.weight")
_STACKS = ("layers.{}.", "noise_refiner.{}.", "context_refiner.{}.")

_Z_BLOCK = (
    Packing("attention.qkv", ("attention.to_q", "attention.to_k", "attention.to_v")),
    *renamed(
        ("attention.out", "attention.to_out.0"),
        ("attention.q_norm", "attention.norm_q"),
        ("attention.k_norm", "attention.norm_k"),
    ),
    *same(
        *(f"feed_forward.w{number}" for number in (1, 2, 3)),
        *(f"{norm}_norm{number}" for norm in ("attention", "ffn") for number in (1, 2)),
        "adaLN_modulation.0",
    ),
)
# Queries have 24 heads, keys and values 8 each.
_LUMINA_BLOCK = (
    Packing("attention.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), parts=(3, 1, 1)),
    *renamed(
        ("attention.out", "attn.to_out.0"),
        ("attention.q_norm", "attn.norm_q"),
        ("attention.k_norm", "attn.norm_k"),
        *((f"feed_forward.w{number}", f"feed_forward.linear_{number}") for number in (1, 2, 3)),
        ("adaLN_modulation.1", "norm1.linear"),
        ("attention_norm1", "norm1.norm"),
        ("attention_norm1", "norm1"),
        ("attention_norm2", "norm2"),
        ("ffn_norm1", "ffn_norm1"),
        ("ffn_norm2", "ffn_norm2"),
    ),
)
# Z-Image's names, by which ComfyUI also knows the layers of Lumina 2.
_LUMINA_ALIASES = (
    Packing(
        "attention.qkv", ("attention.to_q", "attention.to_k", "attention.to_v"), parts=(3, 1, 1)
    ),
    *renamed(
        ("attention.out", "attention.to_out.0"),
        ("attention.q_norm", "attention.norm_q"),
        ("attention.k_norm", "attention.norm_k"),
    ),
)

_ENDS = renamed(
    ("x_embedder", "all_x_embedder.2-1"),
    ("final_layer.linear", "all_final_layer.2-1.linear"),
    ("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"),
)

Z_IMAGE = Architecture(
    name="z_image",
    title="Z-Image",
    recognise=(
        Condition(has_all=_REFINER, has_any=("cap_pad_token", "x_pad_token")),
        Condition(has_all=_REFINER, sizes=(Size("cap_embedder.1.weight", axis=0, size=3840),)),
        Condition(has_any=("all_x_embedder.*",), root="transformer."),
    ),
    blocks={"layers": (30,), "noise_refiner": (2,), "context_refiner": (2,)},
    sizes={
        ".attention.qkv": ((11520, 3840),),
        ".attention.out": ((3840, 3840),),
        ".feed_forward.w1": ((10240, 3840),),
        ".feed_forward.w2": ((3840, 10240),),
        ".feed_forward.w3": ((10240, 3840),),
    },
    modelspec="Z-Image",
    base_model_version="z_image",
    network_module="networks.lora_zimage",
    diffusers="transformer.",
    packings=(
        *(one for stack in _STACKS for one in within(stack, stack, _Z_BLOCK)),
        *_ENDS,
        *same("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.0", "cap_embedder.1"),
    ),
    parameters=same("x_pad_token", "cap_pad_token"),
)

LUMINA2 = Architecture(
    name="lumina2",
    title="Lumina 2",
    recognise=(
        Condition(has_all=_REFINER),
        Condition(
            has_all=(
                "time_caption_embed.timestep_embedder.linear_1.weight",
                "noise_refiner.0.attn.norm_q.weight",
            ),
            has_none=("ref_image_refiner.*",),  # OmniGen2
            root="transformer.",
        ),
    ),
    blocks={"layers": (26, 36), "noise_refiner": (2,), "context_refiner": (2,)},
    sizes={
        ".attention.qkv": ((3840, 2304),),
        ".attention.out": ((2304, 2304),),
        ".feed_forward.w1": ((9216, 2304),),
        ".feed_forward.w2": ((2304, 9216),),
        ".feed_forward.w3": ((9216, 2304),),
    },
    modelspec="lumina-2",
    base_model_version="lumina2",
    network_module="networks.lora_lumina",
    diffusers="transformer.",
    packings=(
        *(one for stack in _STACKS for one in within(stack, stack, _LUMINA_BLOCK)),
        *(one for stack in _STACKS for one in within(stack, stack, _LUMINA_ALIASES)),
        *renamed(
            ("t_embedder.mlp.0", "time_caption_embed.timestep_embedder.linear_1"),
            ("t_embedder.mlp.2", "time_caption_embed.timestep_embedder.linear_2"),
            ("cap_embedder.0", "time_caption_embed.caption_embedder.0"),
            ("cap_embedder.1", "time_caption_embed.caption_embedder.1"),
            ("final_layer.adaLN_modulation.1", "norm_out.linear_1"),
            ("final_layer.linear", "norm_out.linear_2"),
        ),
        *same("x_embedder"),
        *_ENDS,
    ),
)
