"""Adding tiles: all of it, or what agrees with the sign that most of the change has, element by element."""

from __future__ import annotations

import torch
from torch import Tensor

from .work import Task


def added(tiles: Tensor) -> Tensor:
    """The sum of tiles (T, rows, columns), in the memory of the first."""
    for tile in tiles[1:]:
        tiles[0].add_(tile)
    return tiles[0]


def elected_signs(tiles: Tensor, *, by_count: bool = False, draw_is_plus: bool = False) -> Tensor:
    """1 or -1 for each element, and 0 for a draw unless that is plus; (rows, columns), new."""
    sign = torch.sign(tiles[0]) if by_count else tiles[0].clone()
    for tile in tiles[1:]:
        sign.add_(torch.sign(tile) if by_count else tile)
    return sign.ge_(0).mul_(2).sub_(1) if draw_is_plus else sign.sign_()


def elected_sum(tiles: Tensor, task: Task) -> Tensor:
    """TIES' second half (arXiv:2306.01708): elect a sign for each element, add what agrees.

    `elect` is by `sum`, the sign of the sum of all changes, or by `count`, the sign of most. Where
    neither sign wins nothing is added. `normalize` divides by the `count` of those that agree (the
    paper's mean), by their `weights`, or not at all (`no`).

    mergekit lets plus win a draw, and divides by weights except after DARE and breadcrumbs; mecha
    elects by count.

    Args:
        tiles: (T, rows, columns) changes, each times its weight already; overwritten.
        task: For `weights`, `elect`, `normalize`, `sparsify` and `legacy`.

    Returns:
        (rows, columns), new.
    """
    legacy, normalize = task.choice("legacy"), task.choice("normalize")
    if normalize == "auto":
        normalize = "count"
        if legacy == "mergekit":
            normalize = "no" if task.choice("sparsify") in ("dare", "breadcrumbs") else "weights"
    by_count = legacy == "mecha" or task.choice("elect") == "count"
    sign = elected_signs(tiles, by_count=by_count, draw_is_plus=legacy == "mergekit")
    total, shares = torch.zeros_like(sign), torch.zeros_like(sign)
    for tile, weight in zip(tiles, task.weights, strict=True):
        total.add_(tile.mul_(sign).clamp_(min=0))
        if normalize != "no":
            shares.add_(tile.sign_(), alpha=weight if normalize == "weights" else 1)
    if normalize == "count":
        total.div_(shares.clamp_(min=1))
    elif normalize == "weights":
        total.div_(shares.masked_fill_(shares == 0, 1))
    return total.mul_(sign)
