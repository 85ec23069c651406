"""The numbers of a picture: layers by block of their model, in order of execution."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..lora_ops.adapters.formats import component
from ..lora_ops.adapters.strengths.blocks import locate

if TYPE_CHECKING:
    from ..lora_ops.inspect.compare import LayerComparison
    from ..lora_ops.inspect.spectra import Spectrum

_COMPONENTS = {"unet": "model", "te": "text"}
_OUTSIDE = "rest"


@dataclass(frozen=True, slots=True)
class BlockStrength:
    """One block of an adapter.

    Attributes:
        label: Its name, such as IN04.
        share: Its part of the adapter's squared norm, 0 to 1; None if no layer here has a norm.
        ranks: The smallest, the mean and the largest rank; None where no layer here has one.
    """

    label: str
    share: float | None
    ranks: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class BlockLikeness:
    """One block of two adapters.

    Attributes:
        label: Its name, such as IN04.
        cosine: Cosine of the two changes here, -1 to 1; None where one of them is zero.
        norms: Frobenius norms of the two changes.
    """

    label: str
    cosine: float | None
    norms: tuple[float, float]


def by_block(targets: Collection[str]) -> dict[str, list[str]]:
    """Return the names of layers by block label; by component where no block is known.

    Layers outside of all blocks are in the last group, `rest`.

    Args:
        targets: Names of one adapter's layers, in any format.
    """
    found = locate(targets)
    if found is None:
        parts = dict.fromkeys(map(component, targets))
        return {
            _COMPONENTS[part]: [name for name in targets if component(name) == part]
            for part in parts
        }
    groups = {block.label: sorted(names) for block, names in found.modules.items()}
    rest = set(targets).difference(*groups.values())
    return groups | ({_OUTSIDE: sorted(rest)} if rest else {})


def strengths(spectra: Sequence[Spectrum]) -> list[BlockStrength]:
    """Return where an adapter's strength lies."""
    known = {one.target: one for one in spectra}
    total = math.fsum(one.square or 0 for one in spectra)
    return [_strength(label, [known[name] for name in names], total) for label, names in _of(known)]


def likenesses(layers: Sequence[LayerComparison]) -> list[BlockLikeness]:
    """Return where two adapters are alike."""
    known = {one.target: one for one in layers}
    return [_likeness(label, [known[name] for name in names]) for label, names in _of(known)]


def _of(known: Mapping[str, object]) -> list[tuple[str, list[str]]]:
    return list(by_block(known.keys()).items())


def _strength(label: str, layers: Sequence[Spectrum], total: float) -> BlockStrength:
    squares = [one.square for one in layers if one.square is not None]
    ranks = [one.rank for one in layers if one.rank]
    return BlockStrength(
        label,
        math.fsum(squares) / (total or 1) if squares else None,
        (min(ranks), math.fsum(ranks) / len(ranks), max(ranks)) if ranks else None,
    )


def _likeness(label: str, layers: Sequence[LayerComparison]) -> BlockLikeness:
    first, second = (math.hypot(*(one.norms[side] for one in layers)) for side in (0, 1))
    inner = math.fsum(one.inner for one in layers)
    cosine = max(-1.0, min(1.0, inner / (first * second))) if first and second else None
    return BlockLikeness(label, cosine, (first, second))
