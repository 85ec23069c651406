"""Smooth add: B - C blurred before it is added to A. Legacy only.

It blurs over all axes of the array, as supermerger does through SciPy: a linear layer over neurons that
have nothing to do with each other, which is why nothing new should use it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .differences import with_base
from .work import Task, Work

_RADIUS = 4  # four standard deviations of 1
#: Elements whose neighbours are gathered at a time.
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class SmoothWork(Work):
    """A + alpha gauss(median(B - C)); a whole tensor is one tile."""

    task: Task

    def combine(self, tiles: Tensor, base: Tensor | None, first_row: int) -> Tensor:
        """The whole tensor."""
        change = tiles[0].sub_(tiles[1]).view(self.task.shape)
        if change.ndim:
            change = gaussian(median(change))
        return change.view_as(tiles[0]).mul_(self.task.weights[0]).add_(with_base(base))


def median(tensor: Tensor) -> Tensor:
    """Median over the neighbours, three along each axis; the edges see themselves in a mirror."""
    padded = tensor
    for axis in range(tensor.ndim):
        padded = _mirrored(padded, axis, 1)
    places = torch.stack(
        [
            part.reshape(-1)
            for part in torch.meshgrid(*map(torch.arange, tensor.shape), indexing="ij")
        ]
    )
    strides = torch.tensor(padded.stride())
    steps = torch.tensor(list(itertools.product(range(3), repeat=tensor.ndim))) @ strides
    starts = strides @ places
    flat = padded.reshape(-1)
    pieces = [
        flat[(piece[:, None] + steps).to(flat.device)].median(1).values
        for piece in starts.split(max(1, _PIECE // len(steps)))
    ]
    return torch.cat(pieces).view(tensor.shape)


def gaussian(tensor: Tensor) -> Tensor:
    """Blur along one axis after the other with a standard deviation of 1; edges as in `median`."""
    weights = [math.exp(-0.5 * step * step) for step in range(-_RADIUS, _RADIUS + 1)]
    total = math.fsum(weights)
    for axis, length in enumerate(tensor.shape):
        padded = _mirrored(tensor, axis, _RADIUS).double()
        blurred = torch.zeros_like(tensor, dtype=torch.float64)
        for start, weight in enumerate(weights):
            blurred.add_(padded.narrow(axis, start, length), alpha=weight / total)
        tensor = blurred.float()
    return tensor


def _mirrored(tensor: Tensor, axis: int, width: int) -> Tensor:
    """Longer by `width` at both ends of an axis: d c b a | a b c d | d c b a, as often as needed."""
    length = tensor.shape[axis]
    places = torch.arange(-width, length + width, device=tensor.device) % (2 * length)
    return tensor.index_select(axis, torch.minimum(places, 2 * length - 1 - places)).contiguous()
