"""Changes thinned out before they are added: which elements stay, and what makes up for the rest.

- magnitude: the share `density` of largest magnitude (TIES' trim, arXiv:2306.01708); equal
  magnitudes at the threshold all stay.
- breadcrumbs: the share `density` below the largest `gamma` (arXiv:2312.06795).
- dare: each with the probability `density` (arXiv:2311.03099).
- della: each with a probability that grows with its rank by magnitude in the row, from
  `density - epsilon / 2` to `density + epsilon / 2` (arXiv:2406.11617); the mean is `density`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ....linalg.random_bits import random_bits, random_key
from ....linalg.thresholds import RankSearch, magnitude_patterns
from .elected import added, elected_sum
from .work import Task, Work

#: Numbers that 16 random bits tell apart: a probability is rounded up to a multiple of 1 / 65536.
_STEPS = 1 << 16
#: Norms below it are not made up for, as in mergekit.
_NOTHING = 1e-7


@dataclass(frozen=True, slots=True, eq=False)
class SparseWork(Work):
    """Thin out, weigh, and add or elect.

    Attributes:
        task: The weight.
        elected: Whether signs are elected.
        search: For the thresholds of magnitude; None if there are none, or they are found.
        bounds: The least and, for breadcrumbs, the greatest magnitude that stay, of each term.
        measured: Whether `factors` are known: norms have to be measured first.
        factors: Of each term, to make up for what was dropped.
    """

    task: Task
    elected: bool
    search: RankSearch | None
    bounds: tuple[tuple[float, float], ...]
    measured: bool
    factors: tuple[float, ...]

    @staticmethod
    def begin(task: Task, elected: bool) -> SparseWork:
        """The work before its first pass."""
        ranks = _ranks(task)
        return SparseWork(
            task,
            elected,
            search=RankSearch(ranks) if ranks else None,
            bounds=((0, math.inf),) * task.count,
            measured=_rescale(task) != "l1",
            factors=tuple(_factor(task, density) for density in task.numbers("density")),
        )

    @property
    def passes(self) -> int:
        """Two for thresholds, one for norms."""
        return (self.search.passes if self.search else 0) + (not self.measured)

    def observe(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """Counts of magnitudes, or the norms before and after (2, T)."""
        if self.search:
            return self.search.count(list(tiles))
        before = tiles.abs().sum((1, 2), dtype=torch.float64)
        kept = [self._thin(tile.clone(), index, first_row) for index, tile in enumerate(tiles)]
        after = torch.stack([tile.abs_().sum(dtype=torch.float64) for tile in kept])
        return torch.stack([before, after]).cpu()

    def settle(self, total: Tensor) -> SparseWork:
        """Take thresholds or norms."""
        if self.search:
            search = self.search.settle(total)
            if search.found is None:
                return replace(self, search=search)
            bounds = tuple((found[0], found[-1]) for found in search.found.tolist())
            return replace(self, search=None, bounds=bounds)
        factors = tuple(
            before / after if min(before, after) >= _NOTHING else 1.0
            for before, after in total.mT.tolist()
        )
        return replace(self, measured=True, factors=factors)

    def combine(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """The change, in the memory of the first tile unless signs are elected."""
        strength = self.task.number("strength")
        for index, (tile, weight) in enumerate(zip(tiles, self.task.weights, strict=True)):
            factor = weight * self.factors[index] * (1 if self.elected else strength)
            if factor == 0:
                tile.zero_()
            else:
                self._thin(tile, index, first_row).mul_(factor)
        if self.elected:
            return elected_sum(tiles, self.task).mul_(strength)
        return added(tiles)

    def _thin(self, tile: Tensor, index: int, first_row: int) -> Tensor:
        """Set to zero what does not stay of one term's tile; per-element factors included."""
        density = self.task.numbers("density")[index]
        rule = self.task.choice("sparsify")
        if density >= 1 or rule == "none":
            return tile
        if density <= 0:
            return tile.zero_()
        if rule in ("dare", "della"):
            key = random_key(self.task.seed, self.task.name, index)
            first = first_row * tile.shape[1]
            bits = random_bits(key, first, tile.numel()).view(tile.shape).to(tile.device)
            return (
                _dropped(tile, bits, density) if rule == "dare" else self._della(tile, bits, index)
            )
        least, most = self.bounds[index]
        if rule == "breadcrumbs":
            tile.sub_(torch.hardshrink(tile, most))
        if least > 0:
            just_below = float(np.nextafter(np.float32(least), np.float32(0)))
            torch.ops.aten.hardshrink.out(tile, just_below, out=tile)
        return tile

    def _della(self, tile: Tensor, bits: Tensor, index: int) -> Tensor:
        """Keep by rank in the row; a tensor of one dimension is one row."""
        task = self.task
        density, epsilon = task.numbers("density")[index], task.numbers("epsilon")[index]
        rows = tile.view(1, -1) if len(task.shape) < 2 else tile
        ranks, count = _row_ranks(rows), rows.shape[1]
        if task.choice("legacy") == "mergekit":  # epsilon to both sides, and the ends on the ends
            shares = ranks.mul_(2 * epsilon / max(1, count - 1)).add_(density - epsilon)
        else:
            shares = ranks.add_(0.5 - count / 2).mul_(epsilon / count).add_(density)
        steps = shares.mul_(_STEPS).ceil_().clamp_(0, _STEPS).view(tile.shape)
        dropped = bits >= steps - _STEPS // 2
        if _rescale(task) == "density":
            tile.mul_(_STEPS).div_(steps.clamp_(min=1))
        return tile.masked_fill_(dropped, 0)


def _rescale(task: Task) -> str:
    """How dropped elements are made up for."""
    asked, rule = task.choice("rescale"), task.choice("sparsify")
    if rule == "none":
        return "no"
    if asked != "auto":
        return asked
    if rule not in ("dare", "della"):
        return "no"
    return "l1" if task.choice("legacy") == "mergekit" else "density"


def _factor(task: Task, density: float) -> float:
    """What makes up for a density, the same for all elements."""
    rule = task.choice("sparsify")
    if rule == "della" or not 0 < density < 1 or _rescale(task) != "density":
        return 1.0  # DELLA has a factor for each element
    if task.choice("legacy") == "chattiori":
        return 1 / (1 - density)
    return 1 / (_steps(density) / _STEPS if rule == "dare" else density)


def _steps(share: float) -> int:
    return math.ceil(share * _STEPS)


def _ranks(task: Task) -> list[list[int]] | None:
    """Ranks by magnitude of the least that stays and, for breadcrumbs, the greatest; for each term."""
    rule, size = task.choice("sparsify"), task.size
    if rule not in ("magnitude", "breadcrumbs") or size == 0:
        return None
    if all(density <= 0 or density >= 1 for density in task.numbers("density")):
        return None
    result: list[list[int]] = []
    for index, density in enumerate(task.numbers("density")):
        kept = min(max(1, int(density * size)), size)
        if task.choice("legacy") == "mecha":  # what is at the rank of the dropped stays too
            kept = min(size - max(int((1 - density) * size), 1) + 1, size)
        top = 0
        if rule == "breadcrumbs":
            top = min(int(task.numbers("gamma")[index] * size), size - kept)
        result.append([top + kept, top + 1] if rule == "breadcrumbs" else [kept])
    return result


def _dropped(tile: Tensor, bits: Tensor, density: float) -> Tensor:
    """Keep an element where its bits are below the share, without a branch: by a mask of bits."""
    mask = torch.empty(tile.shape, dtype=torch.int32, device=tile.device).copy_(bits)
    mask.sub_(_steps(density) - _STEPS // 2).bitwise_right_shift_(31)
    tile.view(torch.int32).bitwise_and_(mask)
    return tile


def _row_ranks(rows: Tensor) -> Tensor:
    """Ranks by magnitude inside each row, float32 from 0 for the smallest; the first of equals is lower."""
    count = rows.shape[1]
    ranks = torch.arange(count, dtype=torch.float32, device=rows.device).expand(rows.shape)
    if rows.device.type == "cpu":  # sorting whole numbers is twice as fast as sorting places
        keys = magnitude_patterns(rows).long().bitwise_left_shift_(32)
        keys.bitwise_or_(torch.arange(count))
        keys.numpy().sort(axis=1)
        places = keys.bitwise_and_(0xFFFFFFFF)
    else:
        places = magnitude_patterns(rows).argsort(dim=1, stable=True)
    return torch.empty_like(rows).scatter_(1, places, ranks)
