"""Models with the blocks of Flux.1 and other ends: Bria, Ovis-Image and LongCat-Image."""

from __future__ import annotations

from .architecture import Architecture, Condition, Sizes
from .flux import (
    ATTENTION,
    EMBEDDERS,
    GATED_MLP,
    MLP,
    MODULATION,
    QKV,
    SINGLE,
    SINGLE_MODULATION,
    SINGLE_QKV,
    SWAPPED_FINAL,
    UNSPLIT,
    stream_sizes,
)
from .renames import Packing, renamed, same, with_leaves, within

_BLOCKS = (
    *within("double_blocks.{}.", "transformer_blocks.{}.", (*ATTENTION, *MLP, *MODULATION)),
    *within("single_blocks.{}.", "single_transformer_blocks.{}.", (*SINGLE, SINGLE_MODULATION)),
)
_ENDS = (
    *renamed(
        ("img_in", "x_embedder"), ("txt_in", "context_embedder"), ("final_layer.linear", "proj_out")
    ),
    SWAPPED_FINAL,
)
_TIME = renamed(
    ("time_in.in_layer", "time_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_embed.timestep_embedder.linear_2"),
)

# Names of Flux.1, Flux.2 and LyCORIS, which ComfyUI reads for every model that it runs as a Flux.
_READ = (
    *within("single_blocks.{}.", "single_transformer_blocks.{}.", UNSPLIT),
    *(one for one in EMBEDDERS if one.native.startswith("time_in.")),
)

# The native names are those of Flux.1's layers at the same places: no program has others.
BRIA = Architecture(
    name="bria",
    title="Bria",
    recognise=(
        Condition(
            has_all=("time_embed.timestep_embedder.linear_1.weight", "context_embedder.weight"),
            has_any=("single_transformer_blocks.37.*",),
            root="transformer.",
        ),
    ),
    blocks={"double_blocks": (8, 19), "single_blocks": (38,)},
    sizes={**stream_sizes(3072), "txt_in": ((3072, 4096),)},
    foreign_only=True,
    also=("caption_projection.{}.linear",),
    packings=(*_BLOCKS, *_TIME, *_ENDS),
)

LONGCAT = Architecture(
    name="longcat",
    title="LongCat-Image",
    recognise=(
        Condition(
            has_all=("img_in.weight", "txt_in.weight", "double_blocks.0.img_mod.lin.weight"),
            has_none=("vector_in.*", "guidance_in.*", "double_blocks.0.img_mlp.gate_proj.weight"),
        ),
        Condition(
            has_all=("time_embed.timestep_embedder.linear_1.weight", "context_embedder.weight"),
            has_any=("single_transformer_blocks.0.*",),
            root="transformer.",
        ),
    ),
    blocks={"double_blocks": (10,), "single_blocks": (20,)},
    sizes={**stream_sizes(3072), "txt_in": ((3072, 3584),)},
    packings=(
        *_BLOCKS,
        *_TIME,
        *_ENDS,
        *within("double_blocks.{}.", "transformer_blocks.{}.", GATED_MLP),
        *_READ,
        *within("single_blocks.{}.", "single_blocks.{}.", (SINGLE_QKV,)),
    ),
)

_GATES = ("gate_proj", "up_proj", "down_proj")
_SIZES: Sizes = {
    **stream_sizes(3072),
    "linear1": ((33792, 3072),),
    "linear2": ((3072, 15360),),
    ".net.0.proj": ((24576, 3072),),
    ".proj_mlp": ((24576, 3072),),
}
_MLPS = (("img_mlp", "ff"), ("txt_mlp", "ff_context"))
OVIS = Architecture(
    name="ovis",
    title="Ovis-Image",
    recognise=(
        Condition(has_all=("double_blocks.0.img_mlp.gate_proj.weight",)),
        Condition(
            has_all=(
                *("timestep_embedder.linear_1.weight", "context_embedder.weight"),
                "transformer_blocks.0.attn.add_q_proj.weight",
            ),
            has_any=("single_transformer_blocks.0.*",),
            root="transformer.",
        ),
    ),
    blocks={"double_blocks": (6,), "single_blocks": (27,), "transformer_blocks": (6,), "single_transformer_blocks": (27,)},
    sizes=_SIZES,
    also=(
        *(f"transformer_blocks.{{}}.{mlp}.net.{layer}" for mlp in ("ff", "ff_context") for layer in ("0.proj", "2")),
        *(f"single_transformer_blocks.{{}}.{part}" for part in ("proj_mlp", "attn.to_q", "attn.to_k", "attn.to_v")),
    ),
    packings=(
        *within("double_blocks.{}.", "transformer_blocks.{}.", (*ATTENTION, *MODULATION)),
        *within("double_blocks.{}.", "double_blocks.{}.",
                same(*(f"{stream}_mlp.{part}" for stream in ("img", "txt") for part in _GATES))),
        *within("single_blocks.{}.", "single_blocks.{}.", (*same("linear1"), Packing("linear1", ("linear1_qkv", ""), parts=(3, 8)))),
        *within("single_blocks.{}.", "single_transformer_blocks.{}.", (
            Packing("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", ""), parts=(1, 1, 1, 8)),
            *renamed(
                *(("linear2", "proj_out"), ("modulation.lin", "norm.linear")),
                *(("norm.query_norm", "attn.norm_q"), ("norm.key_norm", "attn.norm_k")),
            ),
        )),
        *renamed(
            ("time_in.in_layer", "timestep_embedder.linear_1"),
            ("time_in.out_layer", "timestep_embedder.linear_2"),
        ),
        *_ENDS,
        *same("txt_norm"),
        *_READ,
    ),
    parameters=with_leaves(
        (
            Packing(
                "single_blocks.{}.linear1",
                tuple(f"single_transformer_blocks.{{}}.{part}" for part in (*QKV, "proj_mlp")),
            ),
            *(renamed((f"double_blocks.{{}}.{native}.down_proj", f"transformer_blocks.{{}}.{foreign}.net.2")
              )[0] for native, foreign in _MLPS),
            *renamed(("txt_norm", "context_embedder_norm")),
        ),
        *("weight", "bias"),
    ),
    # What is gated comes first in diffusers.
    fused=tuple(
        Packing(
            f"transformer_blocks.{{}}.{foreign}.net.0.proj",
            (f"double_blocks.{{}}.{native}.up_proj", f"double_blocks.{{}}.{native}.gate_proj"),
        )
        for native, foreign in _MLPS
    ),
)  # fmt: skip
