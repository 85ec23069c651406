"""SeedVR2: video restoration; a layer of a block is named after its stream, or `all` for both."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import same, within

_STREAMS = ("vid", "txt", "all")
_BLOCK = same(
    *(f"attn.proj_{part}.{stream}" for part in ("qkv", "out") for stream in _STREAMS),
    *(f"attn.norm_{part}.{stream}" for part in "qk" for stream in _STREAMS),
    *(f"mlp.{stream}.proj_{part}" for stream in _STREAMS for part in ("in", "in_gate", "out")),
)

SEEDVR2 = Architecture(
    name="seedvr2",
    title="SeedVR2",
    recognise=(Condition(has_all=("vid_in.proj.weight", "emb_in.proj_in.weight")),),
    blocks={"blocks": (32, 36)},
    packings=(
        *within("blocks.{}.", "blocks.{}.", _BLOCK),
        *same("vid_in.proj", "txt_in", "vid_out.proj", "vid_out_norm"),
        *same(*(f"emb_in.proj_{part}" for part in ("in", "hid", "out"))),
    ),
)
