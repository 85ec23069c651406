"""Wan 2.1 and 2.2."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import renamed, same, within

_ATTENTIONS = (("self_attn", "attn1"), ("cross_attn", "attn2"))
_SQUARES = ((1536, 1536), (2048, 2048), (3072, 3072), (5120, 5120))
_BLOCK = renamed(
    *((f"{native}.{part}", f"{foreign}.to_{part}")
      for native, foreign in _ATTENTIONS for part in "qkv"),
    *((f"{native}.o", f"{foreign}.to_out.0") for native, foreign in _ATTENTIONS),
    *((f"{native}.norm_{part}", f"{foreign}.norm_{part}")
      for native, foreign in _ATTENTIONS for part in "qk"),
    *((f"cross_attn.{part}_img", f"attn2.add_{part}_proj") for part in "kv"),
    ("cross_attn.norm_k_img", "attn2.norm_added_k"),
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
)  # fmt: skip

_PACKINGS = (
    *within("blocks.{}.", "blocks.{}.", _BLOCK),
    *renamed(
        *((f"{part}_embedding.{place}", f"condition_embedder.{part}_embedder.linear_{number}")
          for part in ("text", "time") for place, number in ((0, 1), (2, 2))),
        ("time_projection.1", "condition_embedder.time_proj"),
        ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
        ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
        ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
        ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
        ("head.head", "proj_out"),
    ),
    *same("patch_embedding"),
)  # fmt: skip
_PARAMETERS = renamed(
    ("blocks.{}.modulation", "blocks.{}.scale_shift_table"),
    ("vace_blocks.{}.modulation", "vace_blocks.{}.scale_shift_table"),
    ("head.modulation", "scale_shift_table"),
    ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
)
_VACE = renamed(("before_proj", "proj_in"), ("after_proj", "proj_out"))
_VACES = (
    *within("vace_blocks.{}.", "vace_blocks.{}.", (*_BLOCK, *_VACE)),
    *same("vace_patch_embedding"),
)

WAN = Architecture(
    name="wan",
    title="Wan",
    recognise=(
        Condition(has_all=("head.modulation", "blocks.0.self_attn.q.weight")),
        Condition(
            has_all=("blocks.0.attn1.to_q.weight", "condition_embedder.time_proj.weight"),
            has_none=("patch_short.*",),  # Helios
            root="transformer.",
        ),
    ),
    blocks={"blocks": (30, 40), "vace_blocks": (8, 15)},
    sizes={
        ".self_attn.q": _SQUARES,
        ".cross_attn.q": _SQUARES,
        ".cross_attn.k": _SQUARES,
        ".ffn.0": ((8960, 1536), (14336, 3072), (13824, 5120)),
    },
    modelspec="wan2.1",
    base_model_version="wan",
    network_module="networks.lora_wan",
    diffusers="transformer.",
    packings=(*_PACKINGS, *_VACES),
    parameters=_PARAMETERS,
)

# Only diffusers runs Helios: Wan's blocks behind patches of three sizes.
HELIOS = Architecture(
    name="helios",
    title="Helios",
    recognise=(
        Condition(has_all=("patch_short.weight", "patch_long.weight"), root="transformer."),
    ),
    blocks={"blocks": (40,)},
    sizes={
        ".self_attn.q": ((5120, 5120),),
        ".cross_attn.q": ((5120, 5120),),
        ".ffn.0": ((13824, 5120),),
    },
    foreign_only=True,
    packings=(*_PACKINGS, *same("patch_short", "patch_mid", "patch_long")),
)
