"""What storage did to a difference: how much of it is rounding, and what stands above that.

Both sides of a difference were rounded when they were stored. That is noise of known size, nearly independent
from element to element: its variance is a twelfth of the square of the spacing of the stored numbers, of either
side. A matrix of such noise has singular values up to an edge and none above it, so what lies above the edge is
change; and how far noise has lengthened and turned a direction follows from how far above it lies.

Rows and columns are stored at different scales. Divided by them, a difference has equal noise everywhere, which
is what the formulas are for, and directions that the loudest rows would drown are found.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from .factored import FactoredSvd, factored_svd
from .rounding import Grid
from .svd import Svd

# Elements whose spacing is asked for at once, and in all where a sample is enough.
_CHUNK = 1 << 20
_SAMPLE, _RUNS = 1 << 16, 4
# No row or column counts as quieter than this share of the average one, in variance.
_QUIET = 1e-8
# A variance is found lower than it is by as many of its own deviations hardly ever.
_CHANCE = 3.0
# What storage says of its rounding is true to this factor: a scale may be too small for a block's largest
# numbers on purpose, as that of K-quants is, and clips them.
_SURE = 1.12
# A rest of the squares that is less than this share of all is rounding of float32, and tells nothing.
_TOLD = 1e-6
# A largest singular value of noise alone that one matrix in a thousand exceeds (Tracy and Widom); and what
# is left to the differences between the formulas and real rounding.
_RARE, _MARGIN = 3.27, 1.02


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """The size of the rounding in a difference: element (i, j) has the deviation `rows[i] * columns[j]`.

    Attributes:
        rows: (out,), float64, above 0.
        columns: (in,), float64, above 0.
    """

    rows: Tensor
    columns: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return len(self.rows), len(self.columns)

    @property
    def energy(self) -> float:
        """The squared Frobenius norm that the rounding has on average."""
        return float(self.rows.square().sum() * self.columns.square().sum())


def rounding_profile(base: Tensor, tuned: Tensor, grids: tuple[Grid, Grid]) -> Profile:
    """Return the size of the rounding in `tuned - base`, from how both are stored.

    Where a change is much smaller than the spacing, most numbers do not move at all: then it is an upper bound.

    Args:
        base: (out, in, *kernel), any float dtype, on the CPU.
        tuned: The same shape, any float dtype.
        grids: Of the storage of either.
    """
    out, width = len(base), base[0].numel()
    rows = torch.empty(out, dtype=torch.float64)
    columns = torch.zeros(width, dtype=torch.float64)
    for first in range(0, out, step := max(1, _CHUNK // width)):
        part = slice(first * width, (first + step) * width)
        variance = _variance(base, tuned, grids, part).view(-1, width)
        rows[first : first + step] = means = variance.mean(1)
        columns += (variance / means.clamp(min=_TINY)[:, None]).sum(0)
    return Profile(_roots(rows), _roots(columns / out))


def sampled_variance(base: Tensor, tuned: Tensor, grids: tuple[Grid, Grid]) -> float:
    """Return the average variance of the rounding in `tuned - base`, from some runs of it."""
    count = base.numel()
    size = min(count, _SAMPLE // _RUNS)
    starts = {run * (count - size) // (_RUNS - 1) for run in range(_RUNS)}
    found = [_variance(base, tuned, grids, slice(at, at + size)).mean() for at in sorted(starts)]
    return max(float(torch.stack(found).mean()), _TINY)


_TINY = sys.float_info.min


def _variance(base: Tensor, tuned: Tensor, grids: tuple[Grid, Grid], part: slice) -> Tensor:
    old, new = (
        grid(tensor.reshape(-1)[part], part.start)
        for tensor, grid in zip((base, tuned), grids, strict=True)
    )
    return (old.square() + new.square()) / 12


def _roots(variances: Tensor) -> Tensor:
    return variances.clamp(min=max(_QUIET * float(variances.mean()), _TINY)).sqrt()


def evened(delta: Tensor, profile: Profile) -> tuple[Tensor, Profile]:
    """Return a difference over its profile, and that profile, lowered where the difference shows less.

    A row whose numbers moved by less than their rounding has no more rounding than that: where a change is much
    smaller than the spacing, most numbers do not move, and rows differ in how many do.

    Args:
        delta: (out, in), float32.
        profile: As storage has it.

    Returns:
        The first as fresh float32; its noise has a deviation of 1, or less, everywhere.
    """
    even = (delta / profile.rows.to(delta)[:, None]).div_(profile.columns.to(delta))
    rows = _shown(even.square().mean(1), even.shape[1])
    even.div_(rows[:, None])
    columns = _shown(even.square().mean(0), even.shape[0])
    even.div_(columns)
    return even, Profile(
        profile.rows * rows.cpu().double(), profile.columns * columns.cpu().double()
    )


def _shown(variances: Tensor, count: int) -> Tensor:
    """Deviations: 1, or what so many numbers show where chance does not make that of 1."""
    least = 1 - _CHANCE * math.sqrt(2 / count)
    return torch.where(variances < least, variances.clamp(min=_QUIET), 1.0).sqrt()


def edge(shape: tuple[int, int]) -> float:
    """Return what no singular value of noise of deviation 1 exceeds, once in a thousand matrices.

    Source: Marchenko and Pastur (1967) for the edge, Johnstone (2001) for how far it is exceeded.
    """
    tall, wide = (math.sqrt(side) for side in shape)
    spread = (tall + wide) * (1 / tall + 1 / wide) ** (1 / 3)
    return max(_MARGIN * (tall + wide), math.sqrt((tall + wide) ** 2 + _RARE * spread))


def settle(s: Tensor, total: float, shape: tuple[int, int]) -> tuple[int, float] | None:
    """Return how many singular values stand above the noise, and its deviation.

    The deviation is what is left without them, if that is not more than storage may have made: the rest would
    be change that is everywhere.

    Args:
        s: (k,) leading singular values of a difference over its profile, descending, float64.
        total: Sum of the squares of all.
        shape: (out, in).

    Returns:
        None where more singular values are needed to tell.
    """
    above, full = 0, min(shape)
    while True:
        left = (shape[0] - above) * (shape[1] - above)
        rest = total - float(s[:above].square().sum())
        told = left and rest > _TOLD * total
        deviation = min(_SURE, math.sqrt(rest / left)) if told else _SURE
        found = int((s > deviation * edge(shape)).sum())
        if found == len(s) < full:
            return None
        if found <= above:
            return above, deviation
        above = found


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What a difference says of the true change.

    Attributes:
        above: How many directions stand above the rounding.
        floor: The singular value below which nothing is told from rounding; where rows are unequal, at the
            size of the average one.
        noise: Frobenius norm of the part of the difference that is probably rounding.
        change: Estimated Frobenius norm of the true change.
        missed: Estimated Frobenius norm of the true change less `best`.
        best: The change as nearly as it can be told; None where nothing is kept.
        search: See `Svd`: None where the truncation is exact.
    """

    above: int
    floor: float
    noise: float
    change: float
    missed: float
    best: FactoredSvd | None = None
    search: torch.dtype | None = None

    def missed_by(self, apart: float) -> float:
        """Estimated Frobenius norm of the true change less something else, that far from `best`.

        What noise has added to a direction is as good as orthogonal to what it has hidden of it.
        """
        return math.hypot(apart, self.missed)


def read_change(svd: Svd, above: int, deviation: float, profile: Profile, square: float) -> Reading:
    """Return what stands above the noise, each direction as long as lessens the error most.

    Args:
        svd: Leading triplets of the difference over its profile: those to be kept.
        above: How many of them stand above the noise; others are kept as they are.
        deviation: Of the noise, over the profile.
        profile: Of the rounding.
        square: Squared Frobenius norm of the difference itself.

    Source: Gavish and Donoho (2017), Optimal shrinkage of singular values, for the Frobenius norm; Leeb and
        Romanov (2021), Optimal spectral shrinkage and PCA with heteroscedastic noise, for what of a direction's
        length in unequal rows and columns is its own.
    """
    rows, columns = (side.to(svd.u) for side in (profile.rows, profile.columns))
    up, down = svd.u * rows[:, None], svd.vh * columns
    s = svd.s.cpu()
    signal, turned = _spiked(s, deviation, profile.shape, above)
    length = torch.where(signal > 0, signal * turned[0] * turned[1], s)
    grams = [(up.T @ up).cpu().double(), (down @ down.T).cpu().double()]
    of_up, of_down = (gram.diagonal() for gram in grams)
    own = _own(of_up, turned[0], profile.rows) * _own(of_down, turned[1], profile.columns)
    true = signal.square() * own
    kept = (true - 2 * length * signal * turned[0] * turned[1] * own).sum()
    kept += (length.square() * of_up * of_down).sum()
    # Orthogonal directions are not quite that at their true scales.
    joint = grams[0] * grams[1] * signal[:, None] * signal
    whole = float(true.sum() * joint.sum() / joint.trace().clamp(min=_TINY))
    noise = min(deviation**2 * profile.energy, square)
    # What is neither rounding nor above it is change that cannot be told.
    unseen = max(0.0, square - noise - whole)
    root = length.sqrt().to(up)
    usual = deviation * math.sqrt(profile.energy / math.prod(profile.shape))
    return Reading(
        above=above,
        floor=edge(profile.shape) * usual,
        noise=math.sqrt(noise),
        change=math.sqrt(unseen + whole),
        missed=math.sqrt(max(0.0, unseen + float(kept))),
        best=factored_svd(up * root, root[:, None] * down) if len(s) else None,
        search=svd.search[0] if svd.search else None,
    )


def _spiked(
    s: Tensor, deviation: float, shape: tuple[int, int], above: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Singular values before noise was added, and cosines of how far it turned both vectors; else 0."""
    short, long = min(shape), max(shape)
    ratio = short / long
    unit = max(deviation, 1e-12 * float(s[:1].sum())) * math.sqrt(long)
    middle = (s / unit).square() - ratio - 1
    square = (middle + (middle.square() - 4 * ratio).clamp(min=0).sqrt()) / 2
    square = torch.where(torch.arange(len(s)) < above, square.clamp(min=math.sqrt(ratio)), 0.0)
    over = (square.square() - ratio).clamp(min=0)
    tiny = _TINY
    of_short = (over / (square.square() + ratio * square).clamp(min=tiny)).sqrt()
    of_long = (over / (square.square() + square).clamp(min=tiny)).sqrt()
    cosines = (of_short, of_long) if shape[0] <= shape[1] else (of_long, of_short)
    return square.sqrt() * unit, cosines


def _own(squares: Tensor, cosines: Tensor, scales: Tensor) -> Tensor:
    """The squared length, at the true scales, of the true vector in each that noise has turned."""
    others = (1 - cosines.square()) * scales.square().mean()
    found = (squares - others) / cosines.square().clamp(min=_TINY)
    return found.clamp(min=0.0).minimum(scales.square().max())
