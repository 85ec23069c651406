"""ACE-Step: music, with an encoder of lyrics inside; its modules have the same names everywhere."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import same, within

_PARTS = ("to_q", "to_k", "to_v", "to_out.0")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_BLOCK = same(
    *(f"attn.{part}" for part in _PARTS),
    *(f"cross_attn.{part}" for part in (*_PARTS, *_ADDED)),
    *(f"ff.{part}_conv.conv" for part in ("inverted", "depth", "point")),
)
_LYRICS = same(
    *(f"self_attn.linear_{part}" for part in ("q", "k", "v", "out", "pos")),
    *(f"feed_forward.w_{number}" for number in (1, 2)),
    *("norm_ff", "norm_mha"),
)

ACE_STEP = Architecture(
    name="ace_step",
    title="ACE-Step",
    recognise=(Condition(has_all=("genre_embedder.weight",)),),
    blocks={"transformer_blocks": (24,), "encoders": (6,)},
    sizes={f".{part}": ((2560, 2560),) for part in (*_PARTS, *_ADDED)},
    packings=(
        *within("transformer_blocks.{}.", "transformer_blocks.{}.", _BLOCK),
        *within("lyric_encoder.encoders.{}.", "lyric_encoder.encoders.{}.", _LYRICS),
        *same(
            *(f"timestep_embedder.linear_{number}" for number in (1, 2)),
            *("t_block.1", "speaker_embedder", "genre_embedder", "final_layer.linear"),
            *("lyric_embs", "lyric_encoder.embed.out.0", "lyric_encoder.embed.out.1", "lyric_proj"),
            *(f"projectors.{{}}.{layer}" for layer in (0, 2, 4)),
            *(f"proj_in.early_conv_layers.{layer}" for layer in (0, 1, 2)),
            "lyric_encoder.after_norm",
        ),
    ),
)
