"""The picture of learning: losses, and how few directions the whole fine-tune is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor

from ...pictures.drawing import draw
from ...pictures.panels import SMALL, Series, across_marks, background, curve
from ...pictures.shapes import (
    BLUE,
    GREEN,
    ORANGE,
    WEAK,
    Axis,
    Frame,
    Line,
    Shape,
    Text,
    doubling_axis,
    linear_axis,
)

WIDTH, HEIGHT = 960, 760
_LEFT, _RIGHT = 84, 936
_LOSSES = Frame(_LEFT, 60, _RIGHT, 340)
_SPECTRUM = Frame(_LEFT, 440, _RIGHT, 690)
_SMOOTHED = 20
"""Steps that a loss is averaged over: a single batch's says little."""
_MOST = 64
"""Directions that are drawn."""
_PERCENT = Axis(0, 100, (0, 25, 50, 75, 100), unit=" %")


@dataclass(frozen=True, slots=True)
class Course:
    """How one way of training went.

    Attributes:
        title: What it is, for people.
        parameters: How many numbers were trained.
        losses: Of every step.
    """

    title: str
    parameters: int
    losses: list[float]


def learning_picture(
    courses: Sequence[Course], base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]
) -> Image:
    """Draw the losses of several ways of training, and the spectrum of the full one.

    Args:
        courses: Up to three.
        base: Tensors of the base.
        tuned: Those of the full fine-tune.
    """
    colours = (GREEN, BLUE, ORANGE)
    named = [
        Series(f"{one.title}: {one.parameters / 1e3:.0f} k", colour, ())
        for one, colour in zip(courses, colours, strict=False)
    ]
    smooth = [smoothed(one.losses) for one in courses]
    steps = linear_axis([max(map(len, smooth))])
    losses = linear_axis([value for one in smooth for value in one])
    shapes = background(_LOSSES, "Loss by step", losses, named)
    shapes += across_marks(_LOSSES, steps)
    for values, colour in zip(smooth, colours, strict=False):
        shapes.append(Line(curve(_LOSSES, steps, losses, range(len(values)), values), colour, 3))
    shapes += _spectrum(*spectrum(base, tuned))
    return draw(shapes, WIDTH, HEIGHT)


def _spectrum(sizes: Tensor, kept: Tensor) -> list[Shape]:
    names = [
        Series("kept by the best rank", BLUE, ()),
        Series("singular value", ORANGE, ()),
    ]
    ranks = doubling_axis(len(sizes))
    shapes = background(_SPECTRUM, "What all weights changed by", _PERCENT, names)
    shapes += across_marks(_SPECTRUM, ranks)
    xs = range(1, len(sizes) + 1)
    for values, colour in ((kept, BLUE), (sizes, ORANGE)):
        ys = (100 * values).tolist()
        shapes.append(Line(curve(_SPECTRUM, ranks, _PERCENT, xs, ys), colour, 3))
    middle = (_SPECTRUM.left + _SPECTRUM.right) / 2
    shapes.append(
        Text(middle, _SPECTRUM.bottom + 44, "directions of each layer", SMALL, WEAK, "mm")
    )
    return shapes


def spectrum(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return what the changes of all weights are made of, direction by direction.

    Args:
        base: Tensors of the base.
        tuned: Those of the fine-tune.

    Returns:
        For 1 to 64 directions: the mean singular value as a share of each layer's largest; and the
        share of the squared change of all layers that the best rank keeps.
    """
    sizes: list[Tensor] = []
    for key, weight in base.items():
        change = tuned[key].double() - weight.double()
        if weight.ndim >= 2 and change.any():
            values = torch.linalg.svdvals(change.flatten(1))[:_MOST]
            whole = change.square().sum()
            padded = torch.nn.functional.pad(values, (0, _MOST - len(values)))
            sizes.append(torch.stack([padded / padded[0], padded.square(), whole.expand(_MOST)]))
    shares, squares, wholes = torch.stack(sizes).unbind(1)
    return shares.mean(0), squares.sum(0).cumsum(0) / wholes.sum(0)


def smoothed(values: Sequence[float]) -> list[float]:
    """Each value averaged with those of the steps before it."""
    return [
        sum(values[max(0, at - _SMOOTHED + 1) : at + 1]) / min(at + 1, _SMOOTHED)
        for at in range(len(values))
    ]
