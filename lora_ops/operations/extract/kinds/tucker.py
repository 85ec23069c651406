"""The change as a LoRA in Tucker's form, which LyCORIS calls LoCon with `use_tucker`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....adapters.layers import LoraLayer
from ....linalg.tucker import inputs, outputs, tucker
from .change import Change, Made


def make_tucker(change: Change) -> Made:
    """Return the Tucker form of a kernel, of equal ranks on both sides as LyCORIS has it.

    The rule is asked about the singular values of both unfoldings, and the larger answer is taken.
    """
    kernel = change.delta.reshape(change.shape)
    wanted = max(len(change.cut(side(kernel)).s) for side in (outputs, inputs))
    rank = min(wanted, *change.shape[:2])
    found = tucker(kernel, rank, exact=change.exact, seed=change.seed)
    ones = [1] * len(change.shape[2:])
    up, down = found.up.reshape(-1, rank, *ones), found.down.reshape(rank, -1, *ones)
    return Made(LoraLayer(up, down, alpha=float(rank), mid=found.core))


def has_core(shape: Sequence[int]) -> bool:
    """Whether it gets a core: kernels of two axes larger than 1x1. ComfyUI reads no core of others.

    One of a single input, as of a depthwise convolution, has none either: that core would be of rank 1.
    """
    return len(shape) == 4 and math.prod(shape[2:]) > 1 and shape[1] > 1


def tucker_size(shape: Sequence[int], rank: int, _factor: int) -> int:
    """How many numbers it has at most."""
    rank = tucker_rank(shape, rank, _factor)
    return rank * (shape[0] + shape[1] + rank * math.prod(shape[2:]))


def tucker_rank(shape: Sequence[int], rank: int, _factor: int) -> int:
    """Its rank at most."""
    return min(rank, *shape[:2])
