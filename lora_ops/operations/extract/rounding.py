"""What a report says of rounding: how much of a layer's difference it is, and what of the layer lies below it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from ...adapters.layers import LoraLayer
from ...linalg import Svd, frobenius
from ...linalg.noise import Reading, edge, settle
from ...report import LayerReport, Rounding, counted
from .plan import Plan


def rounding_of_reading(reading: Reading, layer: LoraLayer) -> Rounding:
    """What is known where the difference was read for it, and the error of the layer that was made of that."""
    missed = reading.missed
    if reading.best is not None:
        up, down = layer.up.flatten(1).float(), layer.down.flatten(1).float()
        apart = reading.best.missed(up, down, reading.best.s.square().sum())
        missed = reading.missed_by(float(apart))
    return Rounding(reading.floor, reading.noise, reading.above, reading.change, missed)


def rounding_left(reading: Reading, left: Tensor, rest: Tensor) -> Rounding:
    """What is known where the difference was read, and the error of whatever layer takes part of it.

    Args:
        reading: Of the difference.
        left: (out, in), what the layer leaves of the difference.
        rest: (out, in), what `reading.best` leaves of it; overwritten.
    """
    missed = reading.missed_by(float(frobenius(rest.sub_(left))))
    return Rounding(reading.floor, reading.noise, reading.above, reading.change, missed)


def rounding_of_cut(
    svd: Svd, norm: float, variance: float | None, shape: tuple[int, int]
) -> Rounding | None:
    """What is known of a difference that was cut by another rule, from the cut alone.

    Args:
        svd: The directions that are kept.
        norm: Frobenius norm of the difference.
        variance: Of its rounding, the average; None where nobody asks.
        shape: (out, in).
    """
    if variance is None:
        return None
    unit = math.sqrt(variance)
    found = settle((svd.s / unit).cpu(), norm**2 / variance, shape)
    above, deviation = found or (len(svd.s), 1.0)
    noise = min(norm, deviation * unit * math.sqrt(math.prod(shape)))
    change = math.sqrt(norm**2 - noise**2)
    return Rounding(deviation * unit * edge(shape), noise, above, change)


def rounding_notes(plan: Plan, layers: Sequence[LayerReport]) -> Iterator[str]:
    """Why the rule is `noise` where nobody asked for it; how much of another rule's result is rounding."""
    if plan.why is not None:
        yield plan.why
    cut = [
        (layer.rank, layer.rounding.above)
        for layer in layers
        if layer.rounding is not None and layer.rounding.missed is None
    ]
    kept, below = sum(rank for rank, _ in cut), sum(rank - above for rank, above in cut)
    if below:
        yield (
            f"at least {below} of {counted(kept, 'direction')} kept lie below the floor of storage rounding: "
            "they are more noise than change; the rank rule `noise` leaves them out"
        )
