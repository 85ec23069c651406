"""Stable Diffusion 1, 2, XL and Video: one UNet, told apart by the width of its text and its blocks."""

from __future__ import annotations

from dataclasses import replace

from .architecture import Architecture, Condition, Kohya, Size, Sizes
from .renames import same
from .unet_blocks import STANDARD, Layout

_VIDEO = ("*.time_stack.*", "*.time_mix_blocks.*")
_LAYOUT = Layout(STANDARD, attention=(0, 1, 2))


def _unet(width: int, channels: int, *more: str) -> Condition:
    return Condition(
        has_all=("input_blocks.0.0.weight", *more),
        has_none=_VIDEO,
        sizes=(
            Size("*.attn2.to_k.weight", axis=1, size=width),
            Size("input_blocks.0.0.weight", axis=0, size=channels),
        ),
    )


def _sizes(text: int, *channels: int) -> Sizes:
    """Sizes of attentions over text of this width, in levels with these channels."""
    squares = tuple((width, width) for width in channels)
    return {
        ".attn2.to_k": ((None, text),),
        ".attn2.to_v": ((None, text),),
        **{f".attn1.to_{part}": squares for part in ("q", "k", "v", "out.0")},
        ".attn2.to_q": squares,
        ".proj_in": squares,
        ".proj_out": squares,
    }


SDXL = Architecture(
    name="sdxl",
    title="Stable Diffusion XL",
    recognise=(_unet(2048, 320, "label_emb.0.0.weight"),),
    blocks={"transformer_blocks": (10,)},
    sizes=_sizes(2048, 640, 1280),
    second_clip=True,
    modelspec="stable-diffusion-xl-v1-base",
    base_model_version="sdxl_base_v1-0",
    kohya=Kohya("native", {"clip_l": "lora_te1_", "clip_g": "lora_te2_"}),
    diffusers="unet.",
    layout=Layout((2, 2, 2), attention=(1, 2)),
)

# One residual block a level. SSD-1B and Vega are shallower XL with the same blocks.
KOALA = replace(
    SDXL,
    name="koala",
    title="KOALA (Stable Diffusion XL, pruned)",
    recognise=(),
    blocks={"transformer_blocks": (5, 6)},
    variant_of="sdxl",
    layout=Layout((1, 1, 1), attention=(1, 2)),
)

SDXL_REFINER = Architecture(
    name="sdxl_refiner",
    title="Stable Diffusion XL refiner",
    recognise=(_unet(1280, 384, "label_emb.0.0.weight"),),
    blocks={"transformer_blocks": (4,)},
    sizes=_sizes(1280, 768, 1536),
    modelspec="stable-diffusion-xl-v1-refiner",
    diffusers="unet.",
    layout=Layout(STANDARD, attention=(1, 2)),
)

SD1 = Architecture(
    name="sd1",
    title="Stable Diffusion 1",
    recognise=(_unet(768, 320),),
    blocks={"transformer_blocks": (1,)},
    sizes=_sizes(768, 320, 640, 1280),
    modelspec="stable-diffusion-v1",
    base_model_version="sd_v1",
    kohya=Kohya("diffusers", {"clip_l": "lora_te_"}),
    diffusers="unet.",
    layout=_LAYOUT,
)

# Versions 2.0 and 2.1 (512 and 768-v) have the same weights' shapes: no modelspec id is certain.
SD2 = Architecture(
    name="sd2",
    title="Stable Diffusion 2",
    recognise=(_unet(1024, 320),),
    blocks={"transformer_blocks": (1,)},
    sizes=_sizes(1024, 320, 640, 1280),
    base_model_version="sd_v2",
    v2=True,
    kohya=Kohya("diffusers", {"clip_h": "lora_te_"}),
    diffusers="unet.",
    layout=_LAYOUT,
)

# BK-SDM and Segmind's small and tiny models: one residual block a level, tiny ones a level less.
_SMALL = Layout((1, 1, 1, 1), attention=(0, 1, 2))
_TINY = Layout((1, 1, 1), attention=(0, 1, 2))
BK_SDM, BK_SDM_TINY, BK_SDM_V2, BK_SDM_V2_TINY = (
    replace(
        one,
        name=f"bk_sdm{'' if one is SD1 else '_v2'}{name}",
        title=f"BK-SDM{title} ({one.title}, pruned)",
        recognise=(),
        variant_of=one.name,
        layout=layout,
    )
    for one in (SD1, SD2)
    for layout, name, title in ((_SMALL, "", ""), (_TINY, "_tiny", " tiny"))
)

_TEMPORAL = (
    *(f"ff_in.net.{layer}" for layer in ("0.proj", "2")),
    *(f"attn{number}.to_{part}" for number in (1, 2) for part in ("q", "k", "v", "out.0")),
    *(f"ff.net.{layer}" for layer in ("0.proj", "2")),
    *(f"norm{part}" for part in ("_in", "1", "2", "3")),
)
_TIMES = (
    *(f"0.time_stack.{part}" for part in ("in_layers.0", "in_layers.2", "emb_layers.1")),
    *(f"0.time_stack.{part}" for part in ("out_layers.0", "out_layers.3")),
    *(f"1.time_stack.{{}}.{part}" for part in _TEMPORAL),
    *(f"1.time_pos_embed.{layer}" for layer in (0, 2)),
)

# Its own names in diffusers, of spatial and temporal blocks, are in no table here.
SVD = Architecture(
    name="svd",
    title="Stable Video Diffusion",
    recognise=(Condition(has_all=("input_blocks.0.0.weight",), has_any=_VIDEO),),
    blocks={"transformer_blocks": (1,), "time_stack": (1,)},
    mark=r"_time_(stack|pos_embed)_|_temporal_|_spatial_res_block_",
    sizes=_sizes(1024, 320, 640, 1280),
    also=(
        *(
            f"{block}.resnets.{{}}.{kind}_res_block.{layer}"
            for block in ("down_blocks.{}", "mid_block", "up_blocks.{}")
            for kind in ("spatial", "temporal")
            for layer in ("conv1", "conv2", "time_emb_proj", "conv_shortcut", "norm1", "norm2")
        ),
        *(
            f"{block}.attentions.{{}}.temporal_transformer_blocks.{{}}.{layer}"
            for block in ("down_blocks.{}", "mid_block", "up_blocks.{}")
            for layer in _TEMPORAL
        ),
        *(
            f"{block}.attentions.{{}}.time_pos_embed.linear_{number}"
            for block in ("down_blocks.{}", "mid_block", "up_blocks.{}")
            for number in (1, 2)
        ),
    ),
    packings=same(
        *(f"{side}_blocks.{{}}.{part}" for side in ("input", "output") for part in _TIMES),
        *(f"middle_block.{part}" for part in _TIMES),
        *(f"middle_block.2.{part.removeprefix('0.')}" for part in _TIMES if part[0] == "0"),
    ),
    layout=_LAYOUT,
)
