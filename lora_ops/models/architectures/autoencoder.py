"""The VAE of Stable Diffusion, Flux and their kin: its modules natively and in diffusers."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from .renames import Packing, Renames, renamed, renames, same, within

# Only diffusers' has it; the native one has a `norm` there.
DIFFUSERS_VAE = "decoder.mid_block.attentions.0.group_norm.weight"

# HunyuanVideo's convolutions over time are inside modules of another name.
_CONVS = ("", ".conv")
_RESNET = renamed(
    *(("norm1", "norm1"), ("norm2", "norm2")),
    *((f"conv{number}{conv}", f"conv{number}{conv}") for number in (1, 2) for conv in _CONVS),
    *((f"nin_shortcut{conv}", f"conv_shortcut{conv}") for conv in _CONVS),
)
# The second names are those of older diffusers.
_ATTENTION = renamed(
    ("norm", "group_norm"),
    *(("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")),
    *(("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "proj_attn")),
)
#: Linear layers in diffusers, convolutions of one pixel natively.
POINTWISE = tuple(
    f"{side}.mid.attn_1.{part}.weight"
    for side in ("encoder", "decoder")
    for part in ("q", "k", "v", "proj_out")
)


def vae_renames(names: Collection[str]) -> Renames:
    """Return the lookup of the modules of a VAE in diffusers, whose parameters have these names."""
    levels = {name.split(".")[2] for name in names if name.startswith("decoder.up_blocks.")}
    return _of_depth(len(levels))


@cache
def _of_depth(depth: int) -> Renames:
    packings: list[Packing] = list(same("quant_conv", "post_quant_conv"))
    for side in ("encoder", "decoder"):
        middle, own = f"{side}.mid.", f"{side}.mid_block."
        packings += [
            *within(f"{middle}block_1.", f"{own}resnets.0.", _RESNET),
            *within(f"{middle}block_2.", f"{own}resnets.1.", _RESNET),
            *within(f"{middle}attn_1.", f"{own}attentions.0.", _ATTENTION),
            *renamed((f"{side}.norm_out", f"{side}.conv_norm_out")),
            *same(*(f"{side}.conv_{way}{conv}" for way in ("in", "out") for conv in _CONVS)),
        ]
    for level in range(depth):
        # The way up is numbered from the other end.
        for native, foreign, sample in (
            (f"encoder.down.{level}.", f"encoder.down_blocks.{level}.", "down"),
            (f"decoder.up.{depth - 1 - level}.", f"decoder.up_blocks.{level}.", "up"),
        ):
            packings += within(f"{native}block.{{}}.", f"{foreign}resnets.{{}}.", _RESNET)
            packings += renamed(
                *(
                    (
                        f"{native}{sample}sample.conv{conv}",
                        f"{foreign}{sample}samplers.0.conv{conv}",
                    )
                    for conv in _CONVS
                )
            )
    return renames(packings)
