"""Blocks of diffusion models by the names of their layers: data, the first layout that fits a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a model, in most cases a stack of numbered blocks.

    Attributes:
        label: What its blocks are called, before their number.
        pattern: Regular expression at the start of a flattened name (`formats.flat_name`, blocks of
            a UNet in their original names); group 1 is the block's number.
        count: How many blocks the model has; None: as many as the file shows.
        rest: The block's number for a name that fits the pattern without a number.
        numbered: False where the whole section is one block without a number.
    """

    label: str
    pattern: str
    count: int | None = None
    rest: int = 0
    numbered: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """The sections of a family of models, in order of execution.

    Attributes:
        title: Name for people.
        sections: The first whose pattern fits a name has it.
        known_by: The architecture that the names must be of, with no more blocks than ``sections``
            have; None: any.
    """

    title: str
    sections: tuple[Section, ...]
    known_by: str | None = None


def _unet(title: str, count: int, known_by: str | None = None) -> Layout:
    # Layers before and behind all blocks count to the first and to the last block, as in MBW.
    return Layout(
        title,
        (
            Section("BASE", r"te\d?:", numbered=False),
            Section("IN", r"(?:input_blocks_(\d+)|time_embed|label_emb)_", count),
            Section("M", r"middle_block_", 1),
            Section("OUT", r"(?:output_blocks_(\d+)|out)_", count, rest=count - 1),
        ),
        known_by,
    )


_FIRST = r"double_(?:stream_)?blocks|double_layers|joint_blocks|(?:joint_)?transformer_blocks"
_SECOND = r"single_(?:(?:stream_|transformer_)?blocks|layers)"
_BEFORE = r"(?:img|txt|time|vector|guidance)_in|(?:x|context)_embedder|time_text_embed"

# The first layout that finds a numbered block in a file is taken.
LAYOUTS = (
    _unet("Stable Diffusion XL", 9, "sdxl"),
    _unet("Stable Diffusion 1 and 2", 12),
    Layout(
        "a transformer",
        (
            Section("CLIP", r"te\d?:(?:text_model_|encoder_layers_)", numbered=False),
            Section("T5", r"te\d?:(?:\w+_transformer_)?encoder_block_", numbered=False),
            Section("IN", rf"(?:{_BEFORE}|distilled_guidance_layer)(?:_|$)", numbered=False),
            Section("D", rf"(?:{_FIRST})_(\d+)(?:_|$)"),
            Section("S", rf"(?:{_SECOND})_(\d+)(?:_|$)"),
            Section("B", r"(?:visual_transformer_)?(?:blocks|layers)_(?:block)?(\d+)(?:_|$)"),
            Section("OUT", r"(?:final_layer|norm_out|proj_out)(?:_|$)", numbered=False),
        ),
    ),
)

# Finds the stack of blocks of a model that no layout knows; group 1 is its name.
ANY_STACK = r"((?:\D*_)?(?:blocks?|layers?|h))_\d+(?:_|$)"
