"""Spectra: what the change of each layer is made of, and how much of it few directions hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.edited import check_not_empty, finite
from ..adapters.layers import Layer, Scaled, innermost
from ..adapters.outline import outline
from ..adapters.some import without
from ..linalg import frobenius
from ..operations.resize.decomposed import PreparedLayer, decomposed_work, singular_values
from ..run.devices import Placement
from ..run.job import Job, Work
from ..run.stream import stream
from ..run.workers import Progress


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """The singular values of one layer's change.

    Attributes:
        target: Its name.
        title: What people call its kind: LoRA, DoRA, ...
        rank: Rank of its factors; 0 for kinds without any: full differences, OFT, IA3, ....
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
        directions: Numbers of directions, from 1 to the largest rank, or 2, in steps of an eighth.
        whole: The share in all layers together: what an adapter resized to that rank keeps.
        low: The share in a layer that does worse than nine of ten.
        high: The share in a layer that does better than nine of ten.
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
    return tuple(stream(spectra_work(adapter), placement, progress=progress))


def kept(found: Sequence[Spectrum]) -> Kept:
    """Return what is kept at each rank; all empty where no layer has a spectrum.

    Full differences, which are not cut to directions, and layers of zeros do not count.
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


def spectra_work(adapter: Adapter) -> Work[str, Spectrum]:
    """Return the jobs of `spectra`, and how they are done: first what the base weight makes.

    Args:
        adapter: Read layer by layer.
    """
    check_not_empty(adapter)
    layers = outline(adapter.layers)
    bound = [target for target, layer in layers.items() if layer.needs_base]
    work = decomposed_work(without(adapter, bound), _spectra)
    jobs = [Job(target, target, alike=("from the base", target)) for target in bound]
    compute = partial(_compute, adapter.layers, frozenset(bound), work.compute)
    return Work([*jobs, *work.jobs], compute)


def _compute(
    layers: Mapping[str, Layer],
    bound: Collection[str],
    compute: Callable[[Sequence[str], Placement], Sequence[Spectrum]],
    targets: Sequence[str],
    placement: Placement,
) -> Sequence[Spectrum]:
    if targets[0] not in bound:
        return compute(targets, placement)
    known = [(target, layers[target]) for target in targets]
    return [
        Spectrum(target, layer.title, _rank(layer), None, _nothing()) for target, layer in known
    ]


def _spectra(batch: Sequence[PreparedLayer]) -> list[Spectrum]:
    values = singular_values(batch)
    return [_spectrum(known, values.get(known.target)) for known in batch]


def _spectrum(known: PreparedLayer, s: Tensor | None) -> Spectrum:
    target, layer = known.target, known.layer
    if s is None:
        square = finite(frobenius(layer.delta().flatten().unsqueeze(0)).square(), target, layer)
        return Spectrum(target, layer.title, 0, square, _nothing())
    return Spectrum(target, layer.title, _rank(layer), math.fsum(s.square().tolist()), s)


def _rank(layer: Layer) -> int:
    return layer.rank if isinstance(innermost(layer), Scaled) else 0


def _held(squares: Tensor, counts: Sequence[int]) -> Tensor:
    """The sums of the leading squares, for each count of directions."""
    sums = squares.cumsum(0)
    return sums[torch.tensor(counts).clamp(max=len(sums)) - 1]


def _nothing() -> Tensor:
    """No singular values."""
    return torch.empty(0, dtype=torch.float64)
