"""DARE on ranks: whole directions dropped, in place of elements."""

from __future__ import annotations

import torch

from ....linalg.random_bits import random_bits, random_key
from ..elements.work import Task
from .frame import Factors, Frame

# Numbers that 16 random bits tell apart.
_STEPS = 1 << 16


def rank_units(frame: Frame, task: Task) -> Factors:
    """DARE (Yu et al., 2024, arXiv:2311.03099) on columns of up with their rows of down.

    Each of the pairs that a file stores stays with the probability `density`, and what stays is
    divided by it: the mean over seeds is the sum. Of elements that is so too, but their result has no low rank.
    """
    densities = task.numbers("density")
    kept: list[torch.Tensor] = []
    for index, (size, density) in enumerate(zip(frame.sizes, densities, strict=True)):
        bits = random_bits(random_key(task.seed, task.name, index), 0, size).double() + _STEPS / 2
        kept.append((bits < density * _STEPS).double() / max(density, 1 / _STEPS))
    each = torch.cat(kept) * frame.columns(task.weights)
    there = each != 0
    return frame.factors(
        (frame.left.coordinates * each)[:, there], frame.right.coordinates[:, there].mT
    )
