"""What a form is made of, and what is made: the same for all forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....adapters.layers import Convention, Layer
from ....linalg import Svd, frobenius
from ....linalg.ranks.rules import RankRule
from ....linalg.ranks.truncation import truncated


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """The change of one weight, and how it is to be approximated.

    Attributes:
        delta: (out, in * kernel), float32, on the device; not zero.
        shape: Of the weight, (out, in, *kernel).
        rule: How many directions, for this kernel.
        dtype: What the factors will be rounded to.
        base: Reads the weight before the change, (out, in * kernel), float32, on the device.
        factor: Of a LoKr, as LyCORIS means it; see `lokr`.
        convention: Whose reading of a DoRA it is to be best in.
        exact: Compute exact truncations.
        seed: Of the random start.
    """

    delta: Tensor
    shape: tuple[int, ...]
    rule: RankRule
    dtype: torch.dtype
    base: Callable[[], Tensor]
    factor: int = -1
    convention: Convention = "paper"
    exact: bool = False
    seed: int = 0

    def cut(self, matrix: Tensor) -> Svd:
        """Return what the rule keeps of a matrix (m, n) that the form asks it about."""
        total = frobenius(matrix).square()
        stack, totals = matrix.unsqueeze(0), total.unsqueeze(0)
        return truncated(stack, totals, self.rule, exact=self.exact, seed=self.seed)[0]


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A layer, float32, on any device.

    Attributes:
        layer: What approximates the change.
        sweeps: How many rounds an iteration took; None for a form that takes none.
    """

    layer: Layer
    sweeps: int | None = None


def sides(shape: Sequence[int]) -> tuple[int, int]:
    """(out, in * kernel)."""
    return shape[0], math.prod(shape[1:])


def pair_size(shape: Sequence[int], rank: int) -> int:
    """How many numbers up and down have together."""
    return rank * sum(sides(shape))
