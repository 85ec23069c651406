"""ERNIE-Image: its modules have the same names everywhere."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import same, within

_BLOCK = same(
    *(f"self_attention.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"self_attention.norm_{part}" for part in "qk"),
    *("adaLN_sa_ln", "adaLN_mlp_ln", "mlp.gate_proj", "mlp.up_proj", "mlp.linear_fc2"),
)

ERNIE = Architecture(
    name="ernie",
    title="ERNIE-Image",
    recognise=(
        Condition(has_all=("layers.0.mlp.linear_fc2.weight",)),
        Condition(has_all=("layers.0.mlp.linear_fc2.weight",), root="transformer."),
    ),
    blocks={"layers": (36,)},
    diffusers="transformer.",
    packings=(
        *within("layers.{}.", "layers.{}.", _BLOCK),
        *same(
            *("x_embedder.proj", "text_proj", "adaLN_modulation.1"),
            *(f"time_embedding.linear_{number}" for number in (1, 2)),
            *("final_norm.linear", "final_linear"),
        ),
    ),
)
