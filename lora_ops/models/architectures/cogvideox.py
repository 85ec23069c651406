"""CogVideoX: ComfyUI has the layers of a block without the modules around them."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import renamed, same, within

_BLOCK = (
    *renamed(
        *((part, f"attn1.to_{part}") for part in "qkv"),
        ("attn_out", "attn1.to_out.0"),
        ("ff_proj", "ff.net.0.proj"),
        ("ff_out", "ff.net.2"),
        *((f"norm_{part}", f"attn1.norm_{part}") for part in "qk"),
    ),
    *same("norm1.linear", "norm2.linear", "norm1.norm", "norm2.norm"),
)

COGVIDEOX = Architecture(
    name="cogvideox",
    title="CogVideoX",
    recognise=(
        Condition(has_all=("blocks.0.norm1.linear.weight", "blocks.0.attn_out.weight")),
        Condition(has_all=("patch_embed.text_proj.weight", "transformer_blocks.0.norm2.linear.weight"), root="transformer."),
    ),
    blocks={"blocks": (30, 42)},
    sizes={
        **{f"blocks.{{}}.{part}": ((1920, 1920), (3072, 3072)) for part in ("q", "k", "v", "attn_out")},
        ".ff_proj": ((7680, 1920), (12288, 3072)),
        ".ff_out": ((1920, 7680), (3072, 12288)),
        "norm1.linear": ((11520, 512), (18432, 512)),
        "norm2.linear": ((11520, 512), (18432, 512)),
    },
    diffusers="transformer.",
    packings=(
        *within("blocks.{}.", "transformer_blocks.{}.", _BLOCK),
        *renamed(
            *((f"{part}_embedding_linear_{number}", f"{part}_embedding.linear_{number}")
              for part in ("time", "ofs") for number in (1, 2)),
        ),
        *same("patch_embed.proj", "patch_embed.text_proj", "norm_out.linear", "norm_out.norm", "norm_final", "proj_out"),
    ),
)  # fmt: skip
