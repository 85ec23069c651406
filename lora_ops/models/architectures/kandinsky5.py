"""Kandinsky 5: its modules have the same names everywhere."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import same, within

_QKV = ("to_query", "to_key", "to_value", "out_layer", "query_norm", "key_norm")
_SELF = (
    *(f"self_attention.{part}" for part in _QKV),
    *(f"feed_forward.{part}" for part in ("in_layer", "out_layer")),
)
_TEXT, _VISUAL = "text_transformer_blocks.{}.", "visual_transformer_blocks.{}."

KANDINSKY5 = Architecture(
    name="kandinsky5",
    title="Kandinsky 5",
    recognise=(
        Condition(has_all=("visual_transformer_blocks.0.cross_attention.key_norm.weight",)),
    ),
    blocks={"text_transformer_blocks": (2, 4), "visual_transformer_blocks": (32, 50, 60)},
    modelspec="Kandinsky-5",
    base_model_version="kandinsky5",
    network_module="networks.lora_kandinsky",
    diffusers="transformer.",
    packings=(
        *within(_TEXT, _TEXT, same(*_SELF, "text_modulation.out_layer")),
        *within(
            _VISUAL,
            _VISUAL,
            same(
                *_SELF,
                *(f"cross_attention.{part}" for part in _QKV),
                "visual_modulation.out_layer",
            ),
        ),
        *same(
            *("time_embeddings.in_layer", "time_embeddings.out_layer"),
            *("text_embeddings.in_layer", "text_embeddings.norm"),
            *("pooled_text_embeddings.in_layer", "pooled_text_embeddings.norm"),
            *(
                "visual_embeddings.in_layer",
                "out_layer.modulation.out_layer",
                "out_layer.out_layer",
            ),
        ),
    ),
)
