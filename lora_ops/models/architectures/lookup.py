"""The renaming table of a model: its architecture's, or for a UNet that of its layout."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from .architecture import Architecture
from .renames import Packing, Renames, renames, same
from .unet_blocks import layout_names, unet_names, unet_packings

_CLIP = tuple(
    f"text_model.encoder.layers.{{}}.{part}"
    for part in (
        *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
        *("mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"),
    )
)
_T5 = (
    *(f"encoder.block.{{}}.layer.0.SelfAttention.{part}" for part in "qkvo"),
    *(f"encoder.block.{{}}.layer.1.DenseReluDense.{part}" for part in ("wi", "wi_0", "wi_1", "wo")),
)
_LLM = tuple(
    f"model.layers.{{}}.{part}"
    for part in (
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    )
)

# HunyuanDiT's first encoder.
_BERT = tuple(
    f"bert.encoder.layer.{{}}.{part}"
    for part in (
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    )
)

#: The layers of text encoders, which have one name everywhere.
ENCODERS = renames(same(*_CLIP, *_T5, *_LLM, *_BERT, "text_projection"))


def module_renames(architecture: Architecture | None, names: Collection[str] = ()) -> Renames:
    """Return the names of a diffusion model's modules, without any prefix.

    Args:
        architecture: None: an unknown one, whose table is empty.
        names: All parameters of a UNet, natively, for its layout; without them it is that of the
            published model.
    """
    if architecture is None:
        return renames(())
    if architecture.layout is None or not names:
        return _published(architecture)
    return renames((*unet_packings(unet_names(names)), *architecture.packings))


def published_packings(architecture: Architecture) -> tuple[Packing, ...]:
    """Return the modules of a model as it was published, those of a UNet by its layout."""
    layout = architecture.layout
    blocks = () if layout is None else unet_packings(layout_names(layout))
    return (*blocks, *architecture.packings)


@cache
def _published(architecture: Architecture) -> Renames:
    return renames(published_packings(architecture))
