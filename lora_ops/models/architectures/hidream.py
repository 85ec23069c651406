"""HiDream: its modules have the same names everywhere."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import same, within

_GATED = ("w1", "w2", "w3")
_STREAM = (
    "adaLN_modulation.1",
    *(f"attn1.to_{part}" for part in ("q", "k", "v", "out")),
    *(f"attn1.{part}_rms_norm" for part in "qk"),
    *(f"ff_i.shared_experts.{part}" for part in _GATED),
    *(f"ff_i.experts.{{}}.{part}" for part in _GATED),
    "ff_i.gate",
)
_TEXT = (
    *(f"attn1.to_{part}_t" for part in ("q", "k", "v", "out")),
    *(f"attn1.{part}_rms_norm_t" for part in "qk"),
    *(f"ff_t.{part}" for part in _GATED),
)
_DOUBLE, _SINGLE = "double_stream_blocks.{}.block.", "single_stream_blocks.{}.block."

HIDREAM = Architecture(
    name="hidream",
    title="HiDream",
    recognise=(Condition(has_all=("caption_projection.0.linear.weight",)),),
    blocks={"double_stream_blocks": (16,), "single_stream_blocks": (32,)},
    diffusers="transformer.",
    packings=(
        *within(_DOUBLE, _DOUBLE, same(*_STREAM, *_TEXT)),
        *within(_SINGLE, _SINGLE, same(*_STREAM)),
        *same(
            *(f"t_embedder.timestep_embedder.linear_{number}" for number in (1, 2)),
            *(f"p_embedder.pooled_embedder.linear_{number}" for number in (1, 2)),
            *("x_embedder.proj", "final_layer.linear", "final_layer.adaLN_modulation.1"),
            "caption_projection.{}.linear",
        ),
    ),
    unadapted=r"\.ff_i\.gate$",  # the gate of the experts is no linear layer in diffusers
)
