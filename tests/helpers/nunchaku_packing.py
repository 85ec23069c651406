"""Where Nunchaku puts each number of a layer, by formulas of its place."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]).double()


def scattered(values: Tensor, places: Tensor) -> Tensor:
    """A flat tensor that has each value in its place."""
    found = torch.empty(values.numel(), dtype=values.dtype)
    found[places.flatten()] = values.flatten()
    return found


def places(*sizes: int) -> list[Tensor]:
    return list(torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij"))


def codes(numbers: Tensor) -> Tensor:
    """Integers of 4 bits, (rows, columns): eight columns a word, in tiles of 128 x 64."""
    rows, columns = numbers.shape
    n, k = places(rows, columns // 8)
    word = n // 128 * (columns // 64) + k // 8
    for size, index in (
        (8, n % 128 // 16),
        (8, n % 8),
        (4, k % 4),
        (2, n % 16 // 8),
        (2, k % 8 // 4),
    ):
        word = word * size + index
    eight = (numbers.long() & 15).view(rows, -1, 8) << torch.arange(0, 32, 4)
    words = scattered(eight.sum(-1), word).to(torch.int32)  # wraps
    return words.view(torch.int8).view(rows, columns // 2)


def scales(numbers: Tensor) -> Tensor:
    """Scales in 16 bits, (rows, groups)."""
    n, g = places(*numbers.shape)
    place = n // 128 * numbers.shape[1] + g
    for size, index in ((8, n % 128 // 16), (4, n % 8 // 2), (2, n % 16 // 8), (2, n % 2)):
        place = place * size + index
    return scattered(numbers, place).view(numbers.shape[::-1])


def small_scales(numbers: Tensor) -> Tensor:
    """Scales in 8 bits, (rows, groups)."""
    n, g = places(*numbers.shape)
    place = n // 128 * (numbers.shape[1] // 4) + g // 4
    for size, index in ((8, n % 8), (4, n % 32 // 8), (4, n % 128 // 32), (4, g % 4)):
        place = place * size + index
    found = scattered(numbers.view(torch.uint8), place).view(numbers.dtype)
    return found.view(numbers.shape[::-1])


def vector(numbers: Tensor) -> Tensor:
    return scales(numbers.view(-1, 1)).view(-1)


def factor(numbers: Tensor, down: bool) -> Tensor:
    """`up` (rows, rank), or `down` (rank, columns)."""
    first, second = places(*numbers.shape)
    side, inner = (second, first) if down else (first, second)
    rank = numbers.shape[0] if down else numbers.shape[1]
    place = side // 16 * (rank // 16) + inner // 16
    i, j = first % 16, second % 16
    for size, index in ((8, i % 8), (4, j % 8 // 2), (2, i // 8), (2, j // 8), (2, j % 2)):
        place = place * size + index
    return scattered(numbers, place).view(-1, rank)


def words_of_four(numbers: Tensor) -> Tensor:
    """Integers of 4 bits without a sign, (rows, columns), as a layer of modulations has them."""
    rows, columns = numbers.shape
    n, word = places(rows, columns // 4)
    half, i = word % 16 // 8, word % 8
    place = ((n // 4 * (columns // 64) + word // 16) * 4 + n % 4) * 16 + half * 8 + i
    four = numbers.long().view(rows, -1, 4, 8) << torch.tensor([0, 4, 8, 12]).view(4, 1)
    words = scattered(four.sum(-2).view(rows, -1), place).to(torch.int16)
    return words.view(rows // 4, columns).view(torch.int32)
