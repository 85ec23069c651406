"""The picture of two checkpoints: how far apart they are, by block, by component and by kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from PIL.Image import Image

from ..lora_ops.report import counted
from ..lora_ops.text import human_error
from .drawing import draw
from .panels import Series, background, bars, block_labels, message, short, titles
from .shapes import BLUE, GREEN, ORANGE, Colour, Frame, Shape, linear_axis

if TYPE_CHECKING:
    from ..lora_ops.inspect.compare_checkpoints import CheckpointComparison, GroupComparison

WIDTH, HEIGHT = 960, 520
_LEFT, _RIGHT = 84, 936
_BLOCKS = Frame(_LEFT, 130, _RIGHT, 290)
_COMPONENTS = Frame(_LEFT, 364, 340, 484)
_KINDS = Frame(424, 364, _RIGHT, 484)
_TITLES = {"unet": "model", "te": "text", "vae": "VAE"}


def checkpoints_picture(names: tuple[str, str], comparison: CheckpointComparison) -> Image:
    """Draw how far apart two checkpoints are, block by block, component by component, kind by kind.

    Args:
        names: What the checkpoints are called.
        comparison: How the two compare.

    Returns:
        An RGB picture of 960 x 520 pixels.
    """
    total = comparison.total
    about = (
        f"difference {human_error(total.size)}   cosine {total.cosine:.4f}   "
        f"{comparison.equal} of {counted(len(comparison.parameters), 'parameter')} equal"
    )
    components = {_TITLES[name]: one for name, one in comparison.components().items()}
    return draw(
        [
            *titles(names, about),
            *_sizes(
                _BLOCKS,
                f"Difference as a share of {short(names[0], 26)}, by block",
                comparison.blocks(),
                BLUE,
            ),
            *_sizes(_COMPONENTS, "By component", components, ORANGE),
            *_sizes(_KINDS, "By kind", comparison.kinds(), GREEN),
        ],
        WIDTH,
        HEIGHT,
    )


def _sizes(
    frame: Frame, title: str, groups: Mapping[str, GroupComparison], colour: Colour
) -> list[Shape]:
    # Of what is all zero in the first, a difference has no share.
    sizes = [one.size for one in groups.values()]
    values = [100 * size if math.isfinite(size) else None for size in sizes]
    axis = linear_axis([value for value in values if value is not None], " %")
    return [
        *background(frame, title, axis),
        *bars(frame, axis, [Series("", colour, values)]),
        *([] if any(values) else [message(frame, "no weight differs")]),
        *block_labels(frame, list(groups)),
    ]
