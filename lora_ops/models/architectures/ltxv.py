"""LTX-Video, and LTX-2 with its sound."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import renamed, same, within

_ATTENTIONS = (
    *("attn1", "attn2", "audio_attn1", "audio_attn2"),
    *("audio_to_video_attn", "video_to_audio_attn"),
)
_BLOCK = (
    *same(
        *(
            f"{name}.{part}"
            for name in _ATTENTIONS
            for part in ("to_q", "to_k", "to_v", "to_out.0")
        ),
        *(f"{name}.net.{layer}" for name in ("ff", "audio_ff") for layer in ("0.proj", "2")),
    ),
    *renamed(
        *((f"{name}.{part}_norm", f"{name}.norm_{part}") for name in _ATTENTIONS for part in "qk")
    ),
)
# The parts of a module that predicts scale and shift: the time embedder, and a linear.
_SINGLE = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
_SINGLES = (
    ("adaln_single", "time_embed"),
    ("audio_adaln_single", "audio_time_embed"),
    ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
    ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
    ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
    ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
)

LTXV = Architecture(
    name="ltxv",
    title="LTX-Video",
    recognise=(
        Condition(
            has_all=("patchify_proj.weight", "adaln_single.emb.timestep_embedder.linear_1.bias")
        ),
        Condition(
            has_all=("proj_in.weight", "time_embed.emb.timestep_embedder.linear_1.bias"),
            root="transformer.",
        ),
    ),
    blocks={"transformer_blocks": (28, 48)},
    sizes={
        ".attn1.to_q": ((2048, 2048), (4096, 4096)),
        ".attn1.to_out.0": ((2048, 2048), (4096, 4096)),
        ".attn2.to_k": ((2048, 2048), (4096, 4096)),
        ".ff.net.2": ((2048, 8192), (4096, 16384)),
        ".ff.net.0.proj": ((8192, 2048), (16384, 4096)),
    },
    also=tuple(
        f"{side}_embeddings_connector.transformer_1d_blocks.{{}}.{part}"
        for side in ("audio", "video")
        for part in (*(f"attn1.to_{name}" for name in ("q", "k", "v", "out.0")), "ff.net.0.proj", "ff.net.2")
    ),
    diffusers="transformer.",
    packings=(
        *within("transformer_blocks.{}.", "transformer_blocks.{}.", _BLOCK),
        *renamed(
            ("patchify_proj", "proj_in"),
            ("audio_patchify_proj", "audio_proj_in"),
            *((f"{native}.{layer}", f"{foreign}.{layer}")
              for native, foreign in _SINGLES for layer in _SINGLE),
        ),
        *same(
            *(f"{name}.linear_{number}"
              for name in ("caption_projection", "audio_caption_projection") for number in (1, 2)),
            *("proj_out", "audio_proj_out"),
        ),
    ),
    parameters=same(
        *("scale_shift_table", "audio_scale_shift_table", "transformer_blocks.{}.scale_shift_table"),
        "transformer_blocks.{}.audio_scale_shift_table",
    ),
)  # fmt: skip
