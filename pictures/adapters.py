"""The two pictures: what one adapter is made of, and how alike two are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL.Image import Image

from ..lora_ops.inspect.spectra import Kept, kept
from ..lora_ops.report import counted
from ..lora_ops.text import human_error
from .drawing import draw
from .groups import BlockLikeness, BlockStrength, likenesses, strengths
from .panels import (
    HEAD,
    SMALL,
    Series,
    across_marks,
    background,
    band,
    bars,
    block_labels,
    curve,
    message,
    short,
    titles,
    whiskers,
)
from .shapes import (
    BLUE,
    GREEN,
    ORANGE,
    WARNING,
    Axis,
    Colour,
    Frame,
    Line,
    Shape,
    Text,
    doubling_axis,
    linear_axis,
)

if TYPE_CHECKING:
    from ..lora_ops.inspect.compare import Comparison
    from ..lora_ops.inspect.spectra import Spectrum

WIDTH = 960
_LEFT, _RIGHT = 84, 936
_BAND: Colour = (92, 72, 30)
_PERCENT = Axis(0, 100, (0, 25, 50, 75, 100), unit=" %")


def inspection_picture(name: str, spectra: Sequence[Spectrum]) -> Image:
    """Draw where an adapter's strength lies, block by block, and how many directions carry it.

    Args:
        name: What the adapter is called.
        spectra: Spectra of its layers; one at least.

    Returns:
        An RGB picture of 960 x 740 pixels.
    """
    blocks, share = strengths(spectra), kept(spectra)
    shapes = [
        *titles([name], _about(spectra)),
        *_energy(Frame(_LEFT, 130, _RIGHT, 270), blocks, _warning(spectra)),
        *_ranks(Frame(_LEFT, 344, _RIGHT, 464), blocks),
        *_spectrum(Frame(_LEFT, 538, _RIGHT, 690), share),
    ]
    return draw(shapes, WIDTH, 740)


def comparison_picture(names: tuple[str, str], comparison: Comparison) -> Image:
    """Draw how alike the changes of two adapters are, block by block, and how large.

    Args:
        names: What the adapters are called.
        comparison: How the two compare; one layer at least.

    Returns:
        An RGB picture of 960 x 600 pixels.
    """
    blocks = likenesses(comparison.layers)
    alone = len(comparison.layers) - comparison.shared
    about = (
        f"cosine {comparison.cosine:.4f}   distance {human_error(comparison.distance)}   "
        f"{counted(comparison.shared, 'layer')} in both, {alone} in one alone"
    )
    shapes = [
        *titles(names, about),
        *_cosines(Frame(_LEFT, 130, _RIGHT, 310), blocks),
        *_norms(Frame(_LEFT, 384, _RIGHT, 560), blocks, names),
    ]
    return draw(shapes, WIDTH, 600)


def _about(spectra: Sequence[Spectrum]) -> str:
    kinds = Counter(one.title for one in spectra).most_common(3)
    ranks = [one.rank for one in spectra if one.rank]
    span = f"   rank {min(ranks)} to {max(ranks)}" if ranks else ""
    if ranks and min(ranks) == max(ranks):
        span = f"   rank {ranks[0]}"
    told = ", ".join(f"{count} {kind}" for kind, count in kinds)
    return f"{counted(len(spectra), 'layer')}: {told}{span}"


def _warning(spectra: Sequence[Spectrum]) -> str:
    unknown = sum(one.square is None for one in spectra)
    return f"unknown for {counted(unknown, 'layer')}: made from the base" if unknown else ""


def _energy(frame: Frame, blocks: Sequence[BlockStrength], warning: str) -> list[Shape]:
    values = [None if one.share is None else 100 * one.share for one in blocks]
    axis = linear_axis([value for value in values if value is not None], " %")
    series = Series("", BLUE, values)
    return [
        *background(frame, "Energy: share of the squared change, by block", axis),
        Text(frame.right, frame.top - HEAD, warning, SMALL, WARNING, "rm"),
        *bars(frame, axis, [series]),
        *([] if any(values) else [message(frame, _nothing(values))]),
        *block_labels(frame, [one.label for one in blocks]),
    ]


def _nothing(values: Sequence[float | None]) -> str:
    return "unknown without the base" if values and None in values else "all layers are zero"


def _ranks(frame: Frame, blocks: Sequence[BlockStrength]) -> list[Shape]:
    ranks = [one.ranks for one in blocks]
    axis = linear_axis([one[2] for one in ranks if one is not None], steps=3, least=1)
    series = Series("", GREEN, [None if one is None else one[1] for one in ranks])
    ends = [None if one is None else (one[0], one[2]) for one in ranks]
    return [
        *background(frame, "Rank: mean, with the smallest and the largest", axis),
        *bars(frame, axis, [series]),
        *whiskers(frame, axis, ends),
        *([] if any(ranks) else [message(frame, "no layer has a rank")]),
        *block_labels(frame, [one.label for one in blocks]),
    ]


def _spectrum(frame: Frame, share: Kept) -> list[Shape]:
    title = "Spectrum: energy kept at a rank"
    if not share.directions:
        return [
            *background(frame, title, _PERCENT),
            message(frame, "unknown without the base, or all layers are zero"),
        ]
    across = doubling_axis(share.directions[-1])
    low, whole, high = (
        curve(frame, across, _PERCENT, share.directions, [100 * part for part in parts])
        for parts in (share.low, share.whole, share.high)
    )
    legend = [
        Series("the whole LoRA", ORANGE, ()),
        Series("80 % of its layers", _BAND, ()),
    ]
    ground, *marks = background(frame, title, _PERCENT, legend)
    return [
        ground,
        band(low, high, _BAND),
        *marks,
        *across_marks(frame, across),
        Line(whole, ORANGE, 3),
        Text(
            frame.x(0.5), frame.bottom + 38, "directions that every layer keeps", SMALL, anchor="mm"
        ),
    ]


def _cosines(frame: Frame, blocks: Sequence[BlockLikeness]) -> list[Shape]:
    values = [one.cosine for one in blocks]
    axis = Axis(0, 1, (0, 0.25, 0.5, 0.75, 1))
    if any(value is not None and value < 0 for value in values):
        axis = Axis(-1, 1, (-1, -0.5, 0, 0.5, 1))
    return [
        *background(frame, "Cosine: 1 the same direction, 0 unrelated, -1 opposite", axis),
        *bars(frame, axis, [Series("", GREEN, values)]),
        *([] if any(values) else [message(frame, "no block is changed by both")]),
        *block_labels(frame, [one.label for one in blocks]),
    ]


def _norms(frame: Frame, blocks: Sequence[BlockLikeness], names: tuple[str, str]) -> list[Shape]:
    axis = linear_axis([norm for one in blocks for norm in one.norms])
    groups = [
        Series(short(name, 26), colour, [one.norms[side] for one in blocks])
        for side, (name, colour) in enumerate(zip(names, (BLUE, ORANGE), strict=True))
    ]
    return [
        *background(frame, "Norm of the change, by block", axis, groups),
        *bars(frame, axis, groups),
        *block_labels(frame, [one.label for one in blocks]),
    ]
