"""Krea 2: one stream with gated attention."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import Packing, renamed, within

_BLOCK = renamed(
    *((f"attn.w{part}", f"attn.to_{part}") for part in "qkv"),
    ("attn.wo", "attn.to_out.0"),
    ("attn.gate", "attn.to_gate"),
    *((f"mlp.{part}", f"ff.{part}") for part in ("gate", "up", "down")),
    ("attn.wo", "attn.to_out"),
)
_NORMS = renamed(
    ("prenorm.scale", "norm1.weight"),
    ("postnorm.scale", "norm2.weight"),
    ("attn.qknorm.qnorm.scale", "attn.norm_q.weight"),
    ("attn.qknorm.knorm.scale", "attn.norm_k.weight"),
)

KREA2 = Architecture(
    name="krea2",
    title="Krea 2",
    recognise=(
        Condition(has_all=("txtfusion.projector.weight",)),
        Condition(has_all=("text_fusion.projector.weight",), root="transformer."),
    ),
    blocks={"blocks": (28,)},
    sizes={
        "blocks.{}.attn.wq": ((6144, 6144), (2560, 2560)),
        "blocks.{}.attn.wk": ((1536, 6144), (2560, 2560)),
        "blocks.{}.attn.wv": ((1536, 6144), (2560, 2560)),
        "blocks.{}.attn.wo": ((6144, 6144), (2560, 2560)),
    },
    modelspec="Krea-2",
    base_model_version="krea2",
    diffusers="transformer.",
    packings=(
        *within("blocks.{}.", "transformer_blocks.{}.", _BLOCK),
        *within("txtfusion.layerwise_blocks.{}.", "text_fusion.layerwise_blocks.{}.", _BLOCK),
        *within("txtfusion.refiner_blocks.{}.", "text_fusion.refiner_blocks.{}.", _BLOCK),
        *renamed(
            ("first", "img_in"),
            ("tmlp.0", "time_embed.linear_1"),
            ("tmlp.2", "time_embed.linear_2"),
            ("tproj.1", "time_mod_proj"),
            ("txtmlp.1", "txt_in.linear_1"),
            ("txtmlp.3", "txt_in.linear_2"),
            ("txtfusion.projector", "text_fusion.projector"),
            ("last.linear", "final_layer.linear"),
        ),
    ),
    parameters=(
        *within("blocks.{}.", "transformer_blocks.{}.", _NORMS),
        *within("txtfusion.layerwise_blocks.{}.", "text_fusion.layerwise_blocks.{}.", _NORMS),
        *within("txtfusion.refiner_blocks.{}.", "text_fusion.refiner_blocks.{}.", _NORMS),
        Packing("blocks.{}.mod.lin", ("transformer_blocks.{}.scale_shift_table",), flat=True),
        *renamed(
            ("txtmlp.0.scale", "txt_in.norm.weight"),
            ("last.norm.scale", "final_layer.norm.weight"),
            ("last.modulation.lin", "final_layer.scale_shift_table"),
        ),
    ),
)
