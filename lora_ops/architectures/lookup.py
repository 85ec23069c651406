"""The renaming table of a model: its architecture's, or for a UNet that of its layout."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from .architecture import Architecture
from .renames import Renames, renames, same
from .unet_blocks import unet_names, unet_packings

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
        names: All parameters of a UNet, natively, for its layout; without them it is that of
            Stable Diffusion 1, 2 and XL.
    """
    if architecture is None or architecture.diffusers != "unet.":
        return renames(() if architecture is None else architecture.packings)
    if names:
        return renames(unet_packings(unet_names(names)))
    return _standard(xl=architecture.name.startswith("sdxl"))


@cache
def _standard(*, xl: bool) -> Renames:
    """The layout of published models: in the deepest level only XL has attention."""
    levels = (0, 1, 2) if xl else (1, 2)
    marks = [f"up_blocks.{level}.attentions.2.norm" for level in levels]
    return renames(unet_packings(unet_names(marks)))
