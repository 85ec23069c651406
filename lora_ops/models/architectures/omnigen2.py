"""OmniGen2, and Boogu-Image, which puts double blocks before it: their names are the same everywhere."""

from __future__ import annotations

from .architecture import Architecture, Condition
from .renames import same, within

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_MLP = tuple(f"linear_{number}" for number in (1, 2, 3))
_BLOCK = same(
    *(f"attn.{part}" for part in _ATTENTION),
    *(f"feed_forward.{part}" for part in _MLP),
    *("attn.norm_q", "attn.norm_k", "norm1", "norm1.linear", "norm1.norm"),
    *("norm2", "ffn_norm1", "ffn_norm2"),
)
_REFINERS = tuple(
    one
    for stack in ("noise_refiner.{}.", "ref_image_refiner.{}.", "context_refiner.{}.")
    for one in within(stack, stack, _BLOCK)
)
_EDGES = same(
    *("x_embedder", "ref_image_patch_embedder"),
    *(f"time_caption_embed.timestep_embedder.linear_{number}" for number in (1, 2)),
    *(f"time_caption_embed.caption_embedder.{layer}" for layer in (0, 1)),
    *("norm_out.linear_1", "norm_out.linear_2"),
)
_TWO = {f"{kind}_refiner": (2,) for kind in ("noise", "ref_image", "context")}

OMNIGEN2 = Architecture(
    name="omnigen2",
    title="OmniGen2",
    recognise=(
        Condition(
            has_all=("time_caption_embed.timestep_embedder.linear_1.weight", "layers.0.attn.to_q.weight"),
        ),
        Condition(has_any=("ref_image_refiner.*",), has_none=("double_stream_layers.*",), root="transformer."),
    ),
    blocks={"layers": (32,), **_TWO},
    sizes={
        ".attn.to_q": ((2520, 2520),),
        ".attn.to_k": ((840, 2520),),
        ".attn.to_v": ((840, 2520),),
        ".attn.to_out.0": ((2520, 2520),),
        "feed_forward.linear_1": ((10240, 2520),),
        "feed_forward.linear_2": ((2520, 10240),),
        "feed_forward.linear_3": ((10240, 2520),),
        "norm1.linear": ((10080, 1024),),
    },
    packings=(*within("layers.{}.", "layers.{}.", _BLOCK), *_REFINERS, *_EDGES),
)  # fmt: skip

_DOUBLE = same(
    "img_instruct_attn.to_out.0",
    *(
        f"img_instruct_attn.processor.{stream}_{part}"
        for stream in ("img", "instruct")
        for part in ("to_q", "to_k", "to_v", "out")
    ),
    *(f"img_self_attn.{part}" for part in _ATTENTION),
    *(f"{stream}_feed_forward.{part}" for stream in ("img", "instruct") for part in _MLP),
    *(f"img_norm{number}.{part}" for number in (1, 2, 3) for part in ("linear", "norm")),
    *(f"instruct_norm{number}.{part}" for number in (1, 2) for part in ("linear", "norm")),
    *(f"img_{kind}_attn.norm_{part}" for kind in ("instruct", "self") for part in "qk"),
    *("img_attn_norm", "img_self_attn_norm", "instruct_attn_norm"),
    *(f"{stream}_ffn_norm{number}" for stream in ("img", "instruct") for number in (1, 2)),
)

BOOGU = Architecture(
    name="boogu",
    title="Boogu-Image",
    recognise=(Condition(has_any=("double_stream_layers.0.img_instruct_attn.*",)),),
    blocks={"double_stream_layers": (8,), "single_stream_layers": (32,), **_TWO},
    sizes={
        ".attn.to_q": ((3360, 3360),),
        ".attn.to_k": ((840, 3360),),
        ".attn.to_v": ((840, 3360),),
        ".attn.to_out.0": ((3360, 3360),),
        "feed_forward.linear_1": ((13568, 3360),),
        "feed_forward.linear_2": ((3360, 13568),),
        "feed_forward.linear_3": ((13568, 3360),),
        "norm1.linear": ((13440, 1024),),
    },
    packings=(
        *within("double_stream_layers.{}.", "double_stream_layers.{}.", _DOUBLE),
        *within("single_stream_layers.{}.", "single_stream_layers.{}.", _BLOCK),
        *_REFINERS,
        *_EDGES,
    ),
)
