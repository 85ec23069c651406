"""What is left of changes once their sums with the weights are rounded, and what helps where it is little."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ...report import counted
from .change import BakedLayer
from .tiles import Planned

#: A layer whose stored change points less than this along its true change, or holds less of it, is called lost.
SURVIVES = 0.9
#: What helps where weights are written with scales.
OTHERWISE = "keep them whole (`whole=`), store them otherwise (`to=`)"
#: What helps anywhere.
CHANCE = 'round by chance (`rounding="stochastic"`)'


def survival_notes(
    layers: Sequence[BakedLayer],
    tensors: Iterable[Planned],
    *,
    by_chance: bool,
    wider: str,
    ways: Sequence[str],
) -> Iterator[str]:
    """Say where rounding ate changes.

    Args:
        layers: All that changed.
        tensors: Of the result, of which some changed.
        by_chance: Whether it was to be up or down by chance, which keeps a change and adds noise.
        wider: What helps where no weight that changed is stored with scales.
        ways: What helps besides, one at least without chance.
    """
    stored = [one.storing for one in tensors if one.steps and one.storing is not None]
    can = not stored or any(one.by_chance for one in stored)
    by_chance = by_chance and can

    def left(layer: BakedLayer) -> float:
        return layer.gain if by_chance else min(layer.cosine, layer.gain)

    eaten = [layer for layer in layers if layer.norm > 0 and left(layer) < SURVIVES]
    if eaten:
        worst = min(eaten, key=left)
        helps = (OTHERWISE if stored else wider, *ways)
        *first, last = [way for way in helps if way != CHANCE or (can and not by_chance)]
        yield (
            f"rounding ate {counted(len(eaten), 'layer')} of {len(layers)}: the stored change of "
            f"`{worst.target}` has a cosine of {worst.cosine:.2f} with the true one, of which a share of "
            f"{worst.gain:.2f} is left; {', '.join(first)}, or {last}"
        )
