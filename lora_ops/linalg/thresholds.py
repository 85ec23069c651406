"""Which magnitude has a given rank in a tensor that is seen in tiles: exact, by counting.

A float32 without its sign is ordered like the integer of its bits. Two passes find a rank: one counts
the upper halves of all patterns, the next the lower halves of those with the right upper half.
Counts add up, so tiles, threads and machines may each count their part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_UPPER, _LOWER = 1 << 15, 1 << 16
_UNSIGNED = 0x7FFFFFFF


@dataclass(frozen=True, slots=True, eq=False)
class RankSearch:
    """The search for some ranks in each of T tensors.

    Attributes:
        ranks: (T, K) int64 on the CPU, or lists of as many numbers: 1 for the largest magnitude, at most the number of elements.
        bins: (T, K) the upper halves in which they lie, once those are counted.
        found: (T, K) float32 magnitudes of those ranks, once the lower halves are counted too.
    """

    ranks: Tensor | Sequence[Sequence[int]]
    bins: Tensor | None = None
    found: Tensor | None = None

    @property
    def passes(self) -> int:
        """How many passes are left."""
        return 2 if self.bins is None else 1 if self.found is None else 0

    def count(self, tiles: Sequence[Tensor]) -> Tensor:
        """What one tile of each tensor, float32, adds to the counts of this pass; int64."""
        if self.bins is None:
            return torch.stack([_upper_counts(tile) for tile in tiles])
        return torch.stack(
            [
                torch.stack([_lower_counts(tile, upper) for upper in uppers])
                for tile, uppers in zip(tiles, self.bins.tolist(), strict=True)
            ]
        )

    def settle(self, total: Tensor) -> RankSearch:
        """The search after a pass, of which all counts are added up."""
        if self.bins is None:
            # (T, bins) against (T, K): the same counts for each rank.
            found = [_place(total, ranks) for ranks in torch.as_tensor(self.ranks).unbind(1)]
            bins, ranks = (torch.stack(one, 1) for one in zip(*found, strict=True))
            return replace(self, bins=bins, ranks=ranks)
        lower, _ = _place(total, torch.as_tensor(self.ranks))
        patterns = (self.bins << 16) | lower
        return replace(self, found=patterns.to(torch.int32).view(torch.float32))


def magnitude_patterns(tensor: Tensor) -> Tensor:
    """Bit patterns of the magnitudes of float32 numbers, in new int32: ordered as they are."""
    return tensor.view(torch.int32).bitwise_and(_UNSIGNED)


def _upper_counts(tile: Tensor) -> Tensor:
    patterns = magnitude_patterns(tile).bitwise_right_shift_(16)
    return torch.bincount(patterns.view(-1), minlength=_UPPER).cpu()


def _lower_counts(tile: Tensor, upper: int) -> Tensor:
    patterns = magnitude_patterns(tile).sub_(upper << 16).view(-1)
    if (
        patterns.device.type == "cpu"
    ):  # as unsigned numbers one comparison does, at a fifth of the time
        numbers = patterns.numpy().view("uint32")
        patterns = torch.from_numpy(numbers[numbers < _LOWER].view("int32"))
    else:
        patterns = patterns[(patterns >= 0) & (patterns < _LOWER)]
    return torch.bincount(patterns, minlength=_LOWER).cpu()


def _place(counts: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """The bins that hold some ranks from above, and the ranks inside those bins; of any shape."""
    below = counts.cumsum(-1)  # and in the bin itself
    total = below[..., -1:]
    places = torch.searchsorted(below, total + 1 - ranks[..., None])
    return places[..., 0], (ranks[..., None] - total + below.gather(-1, places))[..., 0]
