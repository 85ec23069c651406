"""SCE, RAM and Arcee fusion: elements selected by how much the inputs differ there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ....linalg.thresholds import RankSearch
from .differences import with_base
from .elected import elected_signs
from .work import Task, Work

#: Sums of squares or of weights, up to which they are nothing (mergekit's).
_NOTHING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class SceWork(Work):
    """SCE (arXiv:2408.07990), as mergekit has it.

    Select the elements that vary most between the terms, the share `density` of those that vary at
    all; calculate each term's weight from the mean square of what is selected; erase what is against
    the sign of the sum. The result is the weighted mean of what agrees. The user's weights are
    factors on the calculated ones.

    Attributes:
        task: The weight.
        search: For the least variance that stays; before the first pass its rank is not known.
        least: That variance; None while it is searched for.
        shares: Of the terms, once they are calculated.
    """

    task: Task
    search: RankSearch
    least: float | None
    shares: tuple[float, ...] | None = None

    @staticmethod
    def begin(task: Task) -> SceWork:
        """The work before its first pass."""
        everything = task.number("density") >= 1 or task.size == 0
        least = 0.0 if everything else None
        return SceWork(task, RankSearch([[1]]), least)

    @property
    def passes(self) -> int:
        """Two for the variance, one for the shares."""
        return (self.search.passes if self.least is None else 0) + (self.shares is None)

    def observe(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """Counts of variances, at the first time with the number of zeros behind them; or squares (T,)."""
        if self.least is not None:
            kept = tiles * self._selected(tiles)
            return kept.square_().sum((1, 2), dtype=torch.float64).cpu()
        variance = _variance(tiles)
        counts = self.search.count([variance])
        if self.search.bins is not None:
            return counts
        zeros = (variance.numel() - variance.count_nonzero()).cpu()
        return torch.cat([counts, zeros.view(1, 1)], dim=1)

    def settle(self, total: Tensor) -> SceWork:
        """Take the counts or the squares."""
        if self.least is not None:
            mean = total / max(1, self.task.size)
            there = float(mean.sum()) >= _NOTHING
            parts = mean / mean.sum() if there else torch.full_like(mean, 1 / len(mean))
            return replace(self, shares=tuple(parts.tolist()))
        if self.search.bins is None:
            varied = self.task.size - int(total[0, -1])
            rank = int(varied * self.task.number("density"))
            if rank == 0:
                return replace(self, least=math.inf)
            search = RankSearch([[rank]]).settle(total[:, :-1])
        else:
            search = self.search.settle(total)
        least = None if search.found is None else float(search.found)
        return replace(self, search=search, least=least)

    def combine(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """The change."""
        if self.shares is None:
            raise TypeError("the passes are not over")
        if self.least:
            tiles.mul_(self._selected(tiles))
        sign = elected_signs(tiles, draw_is_plus=True)
        total, parts = torch.zeros_like(sign), torch.zeros_like(sign)
        for tile, share, weight in zip(tiles, self.shares, self.task.weights, strict=True):
            agreeing = tile.mul_(sign).clamp_(min=0)
            total.add_(agreeing, alpha=share * weight)
            parts.add_(agreeing.sign_(), alpha=share * weight)
        result = total.div_(parts.masked_fill_(parts.abs() < _NOTHING, 1)).mul_(sign)
        return result.mul_(self.task.number("strength"))

    def _selected(self, tiles: Tensor) -> Tensor:
        return _variance(tiles) >= (self.least or 0)


def _variance(tiles: Tensor) -> Tensor:
    """Over the terms, of all of them; exactly 0 where they are equal."""
    mean, apart = torch.zeros_like(tiles[0]), torch.empty_like(tiles[0])
    for tile in tiles[1:]:
        mean.add_(torch.sub(tile, tiles[0], out=apart))
    mean.div_(len(tiles)).add_(tiles[0])
    result = torch.zeros_like(mean)
    for tile in tiles:
        result.add_(torch.sub(tile, mean, out=apart).square_())
    return result.div_(len(tiles))


@dataclass(frozen=True, slots=True, eq=False)
class FusionWork(Work):
    """Arcee fusion, as mergekit has it: B's numbers where they matter, A's elsewhere.

    What matters is the distance times how far the row's softmax has moved (its divergence), and
    stands above the median by more than one and a half of the distance between the quartiles. mergekit
    estimates these from a million elements drawn at random; here they are exact.

    Attributes:
        task: The weight.
        search: For the quartiles.
        least: What an element must have to be B's.
    """

    task: Task
    search: RankSearch
    least: float = math.inf

    @staticmethod
    def begin(task: Task) -> FusionWork:
        """The work before its first pass."""
        last = max(0, task.size - 1)
        places = [task.size - int(quarter * last / 4) for quarter in (1, 2, 3)]
        return FusionWork(task, RankSearch([places]))

    @property
    def passes(self) -> int:
        """Two for the quartiles."""
        return self.search.passes if self.task.size else 0

    def observe(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """Counts of importance."""
        return self.search.count([self._importance(tiles[0], with_base(base))])

    def settle(self, total: Tensor) -> FusionWork:
        """Take the quartiles."""
        search = self.search.settle(total)
        if search.found is None:
            return replace(self, search=search)
        low, median, high = search.found[0]
        return replace(self, search=search, least=float(median + 1.5 * (high - low)))

    def combine(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """A + weight (B - A) where it matters."""
        a, b = with_base(base), tiles[0]
        matters = self._importance(b, a) >= self.least
        return torch.where(matters, torch.lerp(a, b, self.task.weights[0]), a)

    def _importance(self, b: Tensor, a: Tensor) -> Tensor:
        # In float64: in float32 torch's exponential differs by where an element stands in a tile.
        shape = (1, -1) if len(self.task.shape) < 2 else a.shape
        p, q = (torch.softmax(x.view(shape), -1, dtype=torch.float64).add_(1e-8) for x in (b, a))
        moved = q.reciprocal_().mul_(p).log_().mul_(p).sum(-1, keepdim=True).clamp_(min=0)
        return (b - a).abs_().view(shape).mul_(moved.float()).view_as(a)


@dataclass(frozen=True, slots=True, eq=False)
class RamWork(Work):
    """RAM (arXiv:2601.13572), as mergekit has it: the mean of the changes of those that change an element.

    A change up to `epsilon` is none. RAM+ raises what one term alone changes by 1 + `boost` times the
    term's ratio of shared to own elements, that ratio at most `limit`.

    Attributes:
        task: The weight.
        counts: Shared and own elements of the terms (2, T), once they are counted.
    """

    task: Task
    counts: Tensor | None = None

    @property
    def passes(self) -> int:
        """One for RAM+."""
        return int(self.counts is None and self.task.number("boost") != 0)

    def observe(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """Numbers of shared and own elements."""
        changed = tiles.abs() > self.task.number("epsilon")
        shared = changed & (changed.sum(0) > 1)
        return torch.stack([shared.sum((1, 2)), (changed & ~shared).sum((1, 2))]).cpu()

    def settle(self, total: Tensor) -> RamWork:
        """Take the numbers."""
        return replace(self, counts=total)

    def combine(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """The change."""
        task = self.task
        changed = tiles.abs() > task.number("epsilon")
        shares = changed.sum(0)
        boosts = torch.ones(task.count, dtype=torch.float64)
        if self.counts is not None:
            ratio = self.counts[0] / self.counts[1].clamp(min=task.number("epsilon"))
            boosts += task.number("boost") * ratio.clamp(max=task.number("limit"))
        own = shares == 1
        result = torch.zeros_like(tiles[0])
        terms = zip(tiles, changed, task.weights, boosts.tolist(), strict=True)
        for tile, there, weight, boost in terms:
            tile.masked_fill_(~there, 0).mul_(weight)
            result.add_(torch.where(own, tile * boost, tile) if boost != 1 else tile)
        return result.div_(shares.clamp(min=1)).mul_(task.number("strength"))
