"""How Nunchaku's layers lie in a file: in the order in which tensor cores read them.

All but the layers of modulations are in tiles of 128 rows; the shapes in the file are only shells. Layouts:
the packers of Nunchaku and of DeepCompressor, which undo none but the factors of low rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Rows of a tile; rows and columns are padded to multiples of it.
TILE = 128


def codes(packed: Tensor, rows: slice) -> Tensor:
    """The codes of some rows, row by row: bytes of two, (rows, columns / 2), the low half first.

    Args:
        packed: (all rows, columns / 2), of one byte each.
        rows: Which.
    """
    words = packed.contiguous().view(torch.int32)
    first, last = rows.start // TILE, -(-rows.stop // TILE)
    tiles = words.view(-1, words.shape[1] // 8, 8, 8, 4, 2, 2)[first:last]
    found = tiles.permute(0, 2, 5, 3, 1, 6, 4).reshape(-1, words.shape[1])
    return found[rows.start - first * TILE : rows.stop - first * TILE].view(torch.uint8)


def scales(packed: Tensor) -> Tensor:
    """The scales of groups of columns, (rows, groups), of the dtype that they have.

    Args:
        packed: (groups, rows).
    """
    groups = packed.shape[0]
    if packed.dtype.itemsize == 1:
        tiles = packed.view(torch.uint8).reshape(-1, groups // 4, 8, 4, 4, 4)
        return tiles.permute(0, 4, 3, 2, 1, 5).reshape(-1, groups).view(packed.dtype)
    tiles = packed.reshape(-1, groups, 8, 4, 2, 2)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(-1, groups)


def vector(packed: Tensor) -> Tensor:
    """A vector, as float32."""
    return scales(packed.view(1, -1)).view(-1).float()


def up(packed: Tensor) -> Tensor:
    """The first factor of low rank, (rows, rank)."""
    return _factor(packed).permute(0, 2, 1, 3).reshape(packed.shape)


def down(packed: Tensor) -> Tensor:
    """The second factor of low rank, (rank, columns), of one that is stored as (columns, rank)."""
    return _factor(packed).permute(1, 2, 0, 3).reshape(packed.shape[::-1])


def _factor(packed: Tensor) -> Tensor:
    """In tiles, (rows / 16, rank / 16, 16, 16)."""
    high, wide = packed.shape[0] // 16, packed.shape[1] // 16
    tiles = packed.reshape(high, wide, 8, 4, 2, 2, 2)
    return tiles.permute(0, 1, 4, 2, 5, 3, 6).reshape(high, wide, 16, 16)


def words_of_four(packed: Tensor) -> Tensor:
    """The codes of modulations, row by row: int16 of four, (rows, columns / 4).

    A word has one of every 8 of 32 columns, the first lowest.

    Args:
        packed: int32, (rows / 4, columns / 2).
    """
    words = packed.contiguous().view(torch.int16)
    high, columns = words.shape
    rows = words.view(high, columns // 64, 4, 16).permute(0, 2, 1, 3)
    return rows.reshape(4 * high, columns // 4)


def one_by_one(interleaved: Tensor, vectors: int) -> Tensor:
    """The rows of one vector after those of the other, of modulations where the first of each lie first."""
    return interleaved.unflatten(0, (-1, vectors)).transpose(0, 1).flatten(0, 1)
