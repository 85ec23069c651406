"""Qwen-Image and Mage-Flow: their modules have the same names everywhere."""

from __future__ import annotations

from .architecture import Architecture, Condition, Size
from .renames import same, within

_BLOCK = same(
    *(f"attn.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
    *(f"attn.add_{part}_proj" for part in "qkv"),
    *(f"attn.norm_{part}" for part in ("q", "k", "added_q", "added_k")),
    *(f"{stream}_mod.1" for stream in ("img", "txt")),
    *(f"{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2")),
)

_SIZES = {
    ".attn.to_q": ((3072, 3072),),
    ".attn.to_out.0": ((3072, 3072),),
    ".attn.add_q_proj": ((3072, 3072),),
    ".img_mlp.net.0.proj": ((12288, 3072),),
    ".img_mod.1": ((18432, 3072),),
}
_PACKINGS = (
    *within("transformer_blocks.{}.", "transformer_blocks.{}.", _BLOCK),
    *same(
        "time_text_embed.timestep_embedder.linear_1",
        "time_text_embed.timestep_embedder.linear_2",
        "time_text_embed.addition_t_embedding",
        *("txt_norm", "img_in", "txt_in", "norm_out.linear", "proj_out"),
    ),
)

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
            sizes=(Size("txt_norm.weight", axis=0, size=3584),),
        ),
    ),
    blocks={"transformer_blocks": (60,)},
    sizes=_SIZES,
    modelspec="Qwen-Image",
    base_model_version="qwen_image",
    network_module="networks.lora_qwen_image",
    diffusers="transformer.",
    packings=_PACKINGS,
)

MAGE_FLOW = Architecture(
    name="mage_flow",
    title="Mage-Flow",
    recognise=(
        Condition(
            has_all=("txt_norm.weight", "img_in.weight"),
            has_none=("transformer_blocks.0.img_mlp.w1.weight",),
            sizes=(Size("txt_norm.weight", axis=0, size=2560),),
        ),
    ),
    blocks={"transformer_blocks": (12,)},
    sizes=_SIZES,
    packings=_PACKINGS,
)
