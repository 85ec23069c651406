"""Stable Cascade, the stage that adapters are for: C."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import same

_LAYERS = (
    *(f"attention.attn.to_{part}" for part in "qkv"),
    *("attention.attn.out_proj", "kv_mapper.1"),
    *("depthwise", "channelwise.0", "channelwise.4"),
    *("mapper", "mapper_sca", "mapper_crp"),
)

STABLE_CASCADE = Architecture(
    name="stable_cascade",
    title="Stable Cascade",
    recognise=(Condition(has_all=("clf.1.weight", "clip_txt_mapper.weight")),),
    # diffusers loads no adapters for it: the names are here to read what kohya's scripts write.
    packings=same(
        *(f"{side}_blocks.{{}}.{{}}.{layer}" for side in ("down", "up") for layer in _LAYERS),
        *("down_downscalers.{}.1.blocks.{}", "up_upscalers.{}.1.blocks.{}"),
        *("clip_txt_mapper", "clip_txt_pooled_mapper", "clip_img_mapper"),
        *("embedding.1", "clf.1"),
    ),
)
