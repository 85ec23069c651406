"""Spectra: what the change of each layer is made of, and how much of it few directions hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapters.adapter import Adapter, LazyLayers
from ..adapters.edited import check_not_empty, finite
from ..adapters.layers import Layer, Scaled, innermost
from ..linalg import frobenius, spectrum
from ..operations.resize.decomposed import Dense, Known, Whole, map_decomposed
from ..run.devices import Placement, place
from ..run.workers import Progress, counted_off


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """One layer.

    Attributes:
        target: Its name.
        title: What people call its kind: LoRA, DoRA, ...
        rank: Of its factors; 0 for a kind without: a full difference, OFT, IA3, ....
        square: Squared Frobenius norm of its change; None where the base weight makes the change.
        s: (k,) singular values of its change, descending, float64; empty where there are no factors
            or no change of its own.
    """

    target: str
    title: str
    rank: int
    square: float | None
    s: Tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """The share of the squared change that so many directions of each layer hold, 0 to 1.

    Attributes:
        directions: How many, from 1 to the largest rank, 2 at least, in steps of an eighth or so.
        whole: Of all layers together: what an adapter resized to that rank keeps.
        low: Of a layer that does worse than nine of ten.
        high: Of a layer that does better than nine of ten.
    """

    directions: tuple[int, ...]
    whole: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def spectra(
    adapter: Adapter, *, placement: Placement | None = None, progress: Progress | None = None
) -> tuple[Spectrum, ...]:
    """Return the singular values of every layer's change, from its factors.

    Args:
        adapter: Read layer by layer.
        placement: Where to compute; None: the CPU.
        progress: Called after each layer.

    Raises:
        UnknownFormatError: It has no layers.
        NonFiniteError: NaN or infinity in a factor.
    """
    check_not_empty(adapter)
    return tuple(counted_off(_measured(adapter, placement), len(adapter.layers), progress))


def kept(found: Sequence[Spectrum]) -> Kept:
    """Return what is kept at each rank; all empty where no layer has a spectrum.

    A full difference is no matter of directions, and a layer of zeros has none: they do not count.
    """
    squares = [one.s.square() for one in found if one.square and len(one.s)]
    if not squares:
        return Kept((), (), (), ())
    most = max(2, *map(len, squares))
    counts = sorted({most, *(round(2 ** (step / 8)) for step in range(8 * most.bit_length() - 7))})
    held = torch.stack([_held(layer, counts) for layer in squares])
    totals = held[:, -1:]
    shares = torch.quantile(held / totals, torch.tensor([0.1, 0.9], dtype=held.dtype), dim=0)
    whole = held.sum(0) / totals.sum()
    return Kept(tuple(counts), *(tuple(row.tolist()) for row in (whole, *shares)))


def _measured(adapter: Adapter, placement: Placement | None) -> Iterator[Spectrum]:
    own: list[str] = []
    for target, layer in adapter.layers.items():
        if layer.needs_base:
            yield Spectrum(target, layer.title, _rank(layer), None, _NOTHING)
        else:
            own.append(target)
    some = replace(adapter, layers=LazyLayers(own, adapter.layers.__getitem__))
    yield from map_decomposed(some, _spectrum, placement or place("cpu"))


def _spectrum(known: Known) -> Spectrum:
    target, layer = known.target, known.layer
    if isinstance(known, Whole):
        square = finite(frobenius(layer.delta().flatten().unsqueeze(0)).square(), target, layer)
        return Spectrum(target, layer.title, 0, square, _NOTHING)
    s = (spectrum(known.matrix) if isinstance(known, Dense) else known.svd.s).cpu()
    return Spectrum(target, layer.title, _rank(layer), math.fsum(s.square().tolist()), s)


def _rank(layer: Layer) -> int:
    return layer.rank if isinstance(innermost(layer), Scaled) else 0


def _held(squares: Tensor, counts: Sequence[int]) -> Tensor:
    """The sums of the first so many."""
    sums = squares.cumsum(0)
    return sums[torch.tensor(counts).clamp(max=len(sums)) - 1]


_NOTHING = torch.empty(0, dtype=torch.float64)
