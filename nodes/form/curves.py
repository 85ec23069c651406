"""Strengths over the progress of sampling, as text: `0: 1, 0.5: 0.3, 1: 0`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

_FORM = "write `PROGRESS: STRENGTH` pairs such as `0: 1, 0.5: 0.3, 1: 0`, or one strength"


@dataclass(frozen=True, slots=True)
class Curve:
    """A strength at each progress, straight between its points and level before and after them.

    Attributes:
        points: (progress, strength), in order; of two at one progress the later holds from there.
        blocks: Strengths by block, times those; see `lora_ops.rules`.
    """

    points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    blocks: str = ""

    def at(self, progress: float) -> float:
        """The strength at a progress, 0 to 1."""
        if progress < self.points[0][0]:
            return self.points[0][1]
        for (start, before), (end, after) in pairwise(self.points):
            if start <= progress < end:
                return before + (after - before) * (progress - start) / (end - start)
        return self.points[-1][1]

    def __str__(self) -> str:
        """As it is typed, without the blocks."""
        if len(self.points) == 1:
            return f"{self.points[0][1]:g}"
        return ", ".join(f"{at:g}: {strength:g}" for at, strength in self.points)


def parse_curve(text: str) -> Curve:
    """Return the curve of a line: `PROGRESS: STRENGTH, …`, or a strength alone, and `| BLOCKS` after it.

    Args:
        text: Nothing means strength 1 all the time.

    Raises:
        ArgumentError: A number is none, a progress is outside 0 to 1, or they go back.
    """
    from ...lora_ops import ArgumentError

    curve, _, blocks = (part.strip() for part in text.partition("|"))
    points = tuple(_point(part, text) for part in curve.split(",")) if curve else ((0.0, 1.0),)
    times = [at for at, _ in points]
    if times != sorted(times) or not all(0 <= at <= 1 for at in times):
        raise ArgumentError(
            f"the curve `{text}` has progress {', '.join(f'{at:g}' for at in times)}; give numbers from 0, "
            "the beginning, to 1, the end, in order"
        )
    if len(points) > 1 and ":" not in curve:
        raise ArgumentError(f"the curve `{text}` has strengths alone; {_FORM}")
    return Curve(points, blocks)


def _point(part: str, text: str) -> tuple[float, float]:
    from ...lora_ops import ArgumentError

    at, colon, strength = part.partition(":")
    try:
        found = (float(at), float(strength)) if colon else (0.0, float(part))
    except ValueError:
        found = (math.nan, math.nan)
    if not all(map(math.isfinite, found)):
        raise ArgumentError(f"`{part.strip()}` of the curve `{text}` is no point; {_FORM}")
    return found
