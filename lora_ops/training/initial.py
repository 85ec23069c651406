"""Where training starts: the factors of a new path."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..linalg import frobenius, truncated_svd

# Takes the weight (out, in * kernel), float32, and a rank; gives up (out, rank) and down (rank,
# in * kernel).
Initialiser = Callable[[Tensor, int, "torch.Generator | None"], tuple[Tensor, Tensor]]


def normal(weight: Tensor, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Down from a normal distribution of deviation 1 / rank, up zero: Hu et al., section 4.1.

    The deviation is PEFT's (`init_lora_weights="gaussian"`).
    """
    up, down = _empty(weight, rank)
    return up, nn.init.normal_(down, std=1 / rank, generator=generator)


def kaiming(weight: Tensor, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Down uniform as torch starts a linear layer, up zero: the authors' code, and PEFT's default."""
    up, down = _empty(weight, rank)
    return up, nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)


def pissa(weight: Tensor, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The weight's own leading directions, U sqrt(S) and sqrt(S) V^T (arXiv:2404.02948)."""
    del generator
    return leading(weight, rank)


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best factors of a matrix, the root of each singular value on both sides.

    Args:
        matrix: (out, in), float32.
        rank: 1 to min(out, in).
    """
    return truncated_svd(matrix, rank, frobenius(matrix) ** 2).factors()


def rows(weight: Tensor, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Up zero, down from the unit normal distribution: of an embedding, as PEFT starts one."""
    up, down = _empty(weight, rank)
    return up, nn.init.normal_(down, generator=generator)


def _empty(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    out, into = weight.shape
    return weight.new_zeros(out, rank), weight.new_empty(rank, into)


INITIALISERS: dict[str, Initialiser] = {"normal": normal, "kaiming": kaiming, "pissa": pissa}
