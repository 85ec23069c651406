"""JoyImage: its modules have the same names everywhere; fused projections stay fused."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import same, within

_BLOCK = same(
    *(f"attn.{stream}_attn_{part}" for stream in ("img", "txt") for part in ("qkv", "proj")),
    *(f"attn.{stream}_attn_{part}_norm" for stream in ("img", "txt") for part in "qk"),
    *(f"{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2")),
)

JOYIMAGE = Architecture(
    name="joyimage",
    title="JoyImage",
    recognise=(
        Condition(has_all=("double_blocks.0.attn.img_attn_qkv.weight",)),
        Condition(has_all=("double_blocks.0.attn.img_attn_qkv.weight",), root="transformer."),
    ),
    blocks={"double_blocks": (20,)},
    packings=(
        *within("double_blocks.{}.", "double_blocks.{}.", _BLOCK),
        *same(
            *(f"condition_embedder.{part}_embedder.linear_{number}"
              for part in ("time", "text") for number in (1, 2)),
            *("condition_embedder.time_proj", "img_in", "proj_out"),
        ),
    ),
)  # fmt: skip
