"""Rounding by chance of a weight's tiles: the same bits for any tiles, threads and naming."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...elements import spelled
from ...errors import ArgumentError
from ...linalg.random_bits import random_bits, random_key
from ...linalg.stochastic import CHANCE, Chance
from ...models.parameter import Parameter, Piece
from ...text import either, plain
from .change import as_stored

#: What a user can ask for.
ROUNDINGS = ("nearest", "stochastic")
#: In the place of a term's number in the key of its random stream.
_USE = -1


def seed_of(rounding: str, seed: int) -> int | None:
    """The seed of rounding by chance; None to the nearest.

    Args:
        rounding: One of `ROUNDINGS`.
        seed: The user's, from 0 to 2^64 - 1.

    Raises:
        ArgumentError: They are none.
    """
    if rounding not in ROUNDINGS:
        raise ArgumentError(f"rounding `{plain(rounding)}` is {either(ROUNDINGS)}")
    if not 0 <= seed < 2**64:
        raise ArgumentError(f"seed {seed} is not from 0 to 2^64 - 1")
    return seed if rounding == "stochastic" else None


@dataclass(frozen=True, slots=True, eq=False)
class ByChance:
    """How one parameter is rounded: an element by random bits of its own place in the model.

    Attributes:
        key: Of the stream.
        dtype: To round to; two bytes a number or one.
        first: Position of the first element, where the rest follow it as they are stored.
        bits: Of all elements as they are stored, where they do not.
    """

    key: int
    dtype: torch.dtype
    first: int
    bits: Tensor | None = None

    @staticmethod
    def of(
        seed: int,
        dtype: torch.dtype,
        whole: Parameter,
        piece: Piece | None,
        *,
        encoded: bool = False,
    ) -> ByChance | None:
        """How a parameter is rounded; None where the dtype is not one that is rounded by chance.

        Args:
            seed: The user's.
            dtype: To round to.
            whole: The parameter.
            piece: The part of it that is stored, where it lies in pieces.
            encoded: Whether the dtype is that of codes, for which only `drawn` is asked.
        """
        if not encoded and spelled(dtype) not in CHANCE:
            return None
        key = random_key(seed, whole.name, _USE)
        parameter = whole if piece is None else piece.parameter
        is_straight = not parameter.transposed and (
            piece is None or not (piece.swapped or piece.turned)
        )
        width = 1
        for length in whole.shape[1:]:
            width *= length
        if is_straight:
            return ByChance(key, dtype, piece.rows[0] * width if piece else 0)
        count = width * (whole.shape[0] if whole.shape else 1)
        bits = random_bits(key, 0, count).reshape(whole.shape)
        return ByChance(key, dtype, 0, as_stored(bits, parameter, piece))

    def round(self, tile: Tensor, first_row: int) -> Tensor:
        """Round rows of the weight as it is stored; one that does not fit is not finite then.

        Args:
            tile: (rows, columns).
            first_row: Of the tile, in the weight.
        """
        nearest = tile.to(self.dtype)
        if not bool(nearest.float().isfinite().all()):
            return nearest  # is an error
        return self.drawn(tile, first_row).to_floats(tile.float(), self.dtype)

    def drawn(self, tile: Tensor, first_row: int) -> Chance:
        """The chances of rows of the weight as it is stored; see `round`."""
        if self.bits is not None:
            bits = self.bits[first_row : first_row + len(tile)]
        else:
            bits = random_bits(self.key, self.first + first_row * tile.shape[1], tile.numel())
        return Chance(bits.reshape(tile.shape))
