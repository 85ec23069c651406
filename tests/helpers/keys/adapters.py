"""Names of the layers of whole adapters, in every spelling, and the block that each is in."""

from __future__ import annotations

import re

from lorakit.lora_ops.adapters.strengths.blocks import SCHEMES
from lorakit.lora_ops.models.architectures import parameters, unet_names

from . import checkpoints

UNET = "diffusion_model."
ENCODERS = {"clip_l": ("lora_te1_", "text_encoder."), "clip_g": ("lora_te2_", "text_encoder_2.")}


def flat(name):
    return name.replace(".", "_")


def targets(model, pattern=""):
    """What an adapter of the whole model changes: weights of linears and convolutions."""
    found = parameters(checkpoints.source(model))
    return [
        one.target
        for one in found.values()
        if one.component in ("unet", "te")
        and (one.name.endswith(".weight") and len(one.shape) > 1 and "embeddings" not in one.name)
        and re.search(pattern, one.name)
    ]


SD1 = targets(checkpoints.sd1())
SDXL = targets(checkpoints.sdxl())
ATTENTION = r"transformer_blocks|text_encoders"
FLUX = [
    *("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",),
    *("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",),
    *(f"{UNET}{name}" for name in ("img_in", "time_in.in_layer", "final_layer.linear")),
    *(f"{UNET}double_blocks.{i}.img_attn.qkv" for i in range(19)),
    *(f"{UNET}single_blocks.{i}.linear1" for i in range(38)),
]
WAN = [f"{UNET}blocks.{i}.self_attn.q" for i in range(40)]


def spelled(target, diffusers, kohya):
    """A target as diffusers (dotted) or the original name, dotted or as kohya writes it."""
    for encoder, (flattened, dotted) in ENCODERS.items():
        inner = target.removeprefix(f"text_encoders.{encoder}.transformer.")
        if inner != target:
            return flattened + flat(inner) if kohya else (dotted + inner if diffusers else target)
    inner = target.removeprefix(UNET)
    if diffusers:
        inner = unet_names().to_diffusers(inner)
    return f"lora_unet_{flat(inner)}" if kohya else f"{'unet.' if diffusers else UNET}{inner}"


def label(target, last):
    """The block of a target in its original name, as merge-block-weighted tells it."""
    part, number, *_ = [*target.removeprefix(UNET).split("."), ""]
    if target.startswith("text_encoders."):
        return "BASE"
    known = {"middle_block": "M00", "time_embed": "IN00", "label_emb": "IN00", "out": last}
    return known.get(part) or f"{part.removesuffix('put_blocks').upper()}{int(number):02}"


def numbers(count):
    """A list of that many different numbers, and each block's."""
    values = [round(0.25 - 0.5 * index, 2) for index in range(count)]
    return ",".join(map(str, values)), dict(zip(SCHEMES[count].labels, values, strict=True))
