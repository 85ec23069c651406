"""GGUF's types that choose vectors of several numbers together, IQ2 and IQ3: twice as quick as the package.

The tables of vectors are the package's. Four numbers are looked up at once, with their signs: those of a byte
or, in the smallest types, of seven bits of which the eighth follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..reading.gguf_header import TYPES
from .memory import PIECE

_BLOCK = 256  # numbers
_FOURS = _BLOCK // 4  # vectors of four
_SIZES = {one.name: one.size for one in TYPES.values()}

#: Of blocks as bytes, (blocks, bytes): places in the table of vectors, (blocks, vectors); bytes of signs,
#: (blocks, 32), for eight numbers each; and what the scales of groups are times that of the block, (blocks, groups).
_Parts = tuple[Tensor, Tensor, Tensor]


def _iq2_xxs(blocks: Tensor) -> _Parts:
    pairs = _ints(blocks[:, 2:], torch.int32).view(-1, 8, 2)
    places = pairs[:, :, 0].contiguous().view(torch.uint8).view(-1, 32)
    signs, scales = _of_seven_bits(pairs[:, :, 1])
    return places, signs, scales.mul_(0.25)


def _iq3_xxs(blocks: Tensor) -> _Parts:
    signs, scales = _of_seven_bits(_ints(blocks[:, 66:], torch.int32))
    return blocks[:, 2:66], signs, scales.mul_(0.5)


def _of_seven_bits(words: Tensor) -> tuple[Tensor, Tensor]:
    """Four signs and a scale, over 1/4 or 1/2, of words of 32 bits, (blocks, 8)."""
    some = (words.unsqueeze(2) >> torch.tensor([0, 7, 14, 21], dtype=torch.int32)).bitwise_and_(127)
    scales = (words >> 28).bitwise_and_(15).float().add_(0.5)
    return _even()[some.view(-1, 32)], scales


def _iq2_xs(blocks: Tensor) -> _Parts:
    words = _ints(blocks[:, 2:66], torch.int16).to(torch.int32)
    signs = _even()[(words >> 9).bitwise_and_(127)]
    return words & 511, signs, _halves(blocks[:, 66:]).float().add_(0.5).mul_(0.25)


def _iq2_s(blocks: Tensor) -> _Parts:
    high = blocks[:, 66:74].unsqueeze(2) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    high = (high & 3).view(-1, 32).to(torch.int32) << 8
    scales = _halves(blocks[:, 74:]).float().add_(0.5).mul_(0.25)
    return high | blocks[:, 2:34], blocks[:, 34:66], scales


def _iq3_s(blocks: Tensor) -> _Parts:
    high = blocks[:, 66:74].unsqueeze(2) >> torch.arange(8, dtype=torch.uint8)
    high = (high & 1).view(-1, _FOURS).to(torch.int32) << 8
    return high | blocks[:, 2:66], blocks[:, 74:106], _halves(blocks[:, 106:]).float() * 2 + 1


#: By type.
_TYPES: Mapping[str, Callable[[Tensor], _Parts]] = {
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
}


def vector_decoder(package: Any, type: str) -> Callable[[Any], Any] | None:
    """What decodes rows of blocks, arrays of NumPy, into float32; None for other types.

    Args:
        package: `gguf`, which has the tables.
        type: ggml's name of the blocks.
    """
    if type not in _TYPES or not hasattr(package.quants, type):
        return None
    vectors = _vectors(package, type)

    def decode(codes: Any) -> Any:
        return _decoded(type, vectors, torch.from_numpy(codes)).numpy()

    return decode


@cache
def _vectors(package: Any, type: str) -> Tensor:
    """Four numbers of 8 bits by vector, by which four of it, and by signs, as one number each."""
    kind = getattr(package.quants, type)
    kind.init_grid()
    grid = torch.from_numpy(kind.grid.copy()).view(-1, 1, 4)
    signs = (torch.arange(16).unsqueeze(1) >> torch.arange(4)) & 1
    return (grid * (1 - 2 * signs)).to(torch.int8).view(torch.int32).view(-1)


@cache
def _even() -> Tensor:
    """Of seven bits, eight of which an even number are set."""
    seven = torch.arange(128)
    odd = ((seven.unsqueeze(1) >> torch.arange(7)) & 1).sum(1) & 1
    return (seven | odd << 7).to(torch.uint8)


def _decoded(type: str, vectors: Tensor, codes: Tensor) -> Tensor:
    blocks = codes.reshape(-1, _SIZES[type])
    found = torch.empty(len(blocks), _BLOCK)
    step = PIECE // _BLOCK
    for some, out in zip(blocks.split(step), found.split(step), strict=True):
        places, signs, scales = _TYPES[type](some)
        scales *= _ints(some[:, :2], torch.float16).float()
        index = places.to(torch.int32) << 4
        if index.shape[1] < _FOURS:  # a vector is eight numbers: the halves of it
            index = torch.stack([index << 1, (index << 1) + 16], dim=2).view(-1, _FOURS)
        index |= torch.stack([signs & 15, signs >> 4], dim=2).view(-1, _FOURS)
        numbers = vectors.index_select(0, index.view(-1)).view(torch.int8)
        groups = out.view(len(some), scales.shape[1], -1)
        groups.copy_(numbers.view(groups.shape)).mul_(scales.unsqueeze(2))
    return found.view(len(codes), -1)


def _halves(scales: Tensor) -> Tensor:
    """Both halves of bytes, the low one first."""
    return torch.stack([scales & 15, scales >> 4], dim=2).view(len(scales), -1)


def _ints(some: Tensor, dtype: torch.dtype) -> Tensor:
    return some.contiguous().view(dtype)
