"""Stable Diffusion 1, 2 and XL: one UNet, told apart by the width of its text."""

from __future__ import annotations

from .architecture import Architecture, Condition, Kohya, Size, TargetRule

_ATTENTION = (
    r"^(((in|out)put_blocks_\d+|middle_block)_1|((down|up)_blocks_\d+|mid_block)_attentions_\d+)_"
)
_BLOCK = _ATTENTION + r"transformer_blocks_\d+_"
_DEEPER = _ATTENTION + r"transformer_blocks_[1-9]"
_TEXT = r"^(text_model_)?encoder_layers_\d+_(self_attn|mlp)_"
_VIDEO = ("*.time_stack.*", "*.time_mix_blocks.*")


def _unet(width: int, channels: int, *more: str) -> Condition:
    return Condition(
        has_all=("input_blocks.0.0.weight", *more),
        has_none=_VIDEO,
        sizes=(
            Size("*.attn2.to_k.weight", axis=1, size=width),
            Size("input_blocks.0.0.weight", axis=0, size=channels),
        ),
    )


SDXL = Architecture(
    name="sdxl",
    title="Stable Diffusion XL",
    recognise=(_unet(2048, 320, "label_emb.0.0.weight"),),
    targets=(TargetRule(_BLOCK, 2048), TargetRule(_DEEPER), TargetRule(r"^te2:" + _TEXT[1:])),
    modelspec="stable-diffusion-xl-v1-base",
    base_model_version="sdxl_base_v1-0",
    kohya=Kohya("native", {"clip_l": "lora_te1_", "clip_g": "lora_te2_"}),
    diffusers="unet.",
)

SDXL_REFINER = Architecture(
    name="sdxl_refiner",
    title="Stable Diffusion XL refiner",
    recognise=(_unet(1280, 384, "label_emb.0.0.weight"),),
    targets=(TargetRule(_BLOCK, 1280),),
    modelspec="stable-diffusion-xl-v1-refiner",
    diffusers="unet.",
)

SD1 = Architecture(
    name="sd1",
    title="Stable Diffusion 1",
    recognise=(_unet(768, 320),),
    targets=(TargetRule(_BLOCK, 768),),
    modelspec="stable-diffusion-v1",
    base_model_version="sd_v1",
    kohya=Kohya("diffusers", {"clip_l": "lora_te_"}),
    diffusers="unet.",
)

# Versions 2.0 and 2.1 (512 and 768-v) have the same weights' shapes: no modelspec id is certain.
SD2 = Architecture(
    name="sd2",
    title="Stable Diffusion 2",
    recognise=(_unet(1024, 320),),
    targets=(TargetRule(_BLOCK, 1024),),
    base_model_version="sd_v2",
    v2=True,
    kohya=Kohya("diffusers", {"clip_h": "lora_te_"}),
    diffusers="unet.",
)
