"""Encoding into nf4 and fp4 as bitsandbytes has them: see `bitsandbytes.py`. No sizes are nested."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .bitsandbytes import FP4, NF4, Blocks
from .encoding import Chance, Encoder
from .scheme import Scheme
from .weight import QuantisedWeight

#: Numbers of a block.
BLOCK = 64
_SMALLEST = 1e-38  # a block of smaller numbers is one of zeros
_PART = 1 << 17  # numbers that stay in the cache
_FP4 = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
# The program's own numbers: quantiles of the normal distribution.
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_TABLES = {"nf4": _NF4, "fp4": (*_FP4, *(0.0 - one for one in _FP4))}
_ENDINGS = {"nf4": NF4, "fp4": FP4}


class FourBits(Encoder):
    """Numbers of a table, and the size of each block of the flat weight: its largest number.

    Args:
        key: See `Encoder`.
        shape: See there; rows are whole blocks.
        dtype: Of the codes: bytes.
        kind: `nf4` or `fp4`.
        block: Numbers of a block.
        rounded: Dtype that the program rounds the numbers to; None: bfloat16.
    """

    def __init__(
        self,
        key: str,
        shape: tuple[int, int],
        dtype: torch.dtype,
        kind: str = "nf4",
        block: int = BLOCK,
        rounded: torch.dtype | None = None,
    ) -> None:
        super().__init__(key, shape, dtype)
        self._block, self._rounded = block, rounded or torch.bfloat16
        self._table = torch.tensor(_TABLES[kind])
        # A number between two is the lower one's at the middle; of two equal codes the first is meant.
        order = torch.argsort(self._table, stable=True)
        self._ordered, self._order = self._table[order], order.to(torch.uint8)
        self._middles = ((self._ordered[:-1] + self._ordered[1:]) / 2).tolist()
        self._levels = self._ordered.unique()
        self._sizes = torch.zeros(shape[0], shape[1] // block)

    def encode(
        self, rows: Tensor, first: int, chance: Chance | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Encoder`."""
        exact = rows.float()
        blocks = exact.view(len(rows), -1, self._block)
        sizes = blocks.abs().amax(dim=2)
        self.check(sizes)
        self._sizes[first : first + len(rows)] = sizes
        scaled = (blocks * (1.0 / sizes.clamp(min=_SMALLEST)).unsqueeze(2)).clamp_(-1, 1)
        if chance is None:
            places = self._places(scaled.view(-1)).to(torch.int32)
        else:
            places = self._drawn(scaled.view(exact.shape), chance).view(-1)
        numbers = self._ordered.index_select(0, places).view(blocks.shape).mul_(sizes.unsqueeze(2))
        numbers = numbers.to(self._rounded).float().view(exact.shape)
        self.count(exact, numbers, first)
        codes = self._order.index_select(0, places).view(len(rows), -1)
        return codes[:, ::2] << 4 | codes[:, 1::2], numbers

    def _places(self, numbers: Tensor) -> Tensor:
        """Which of the table's numbers in order each is nearest to; of two the lower one."""
        places = torch.zeros(numbers.shape, dtype=torch.uint8)
        for part, found in zip(numbers.split(_PART), places.split(_PART), strict=True):
            for middle in self._middles:
                found.add_(part > middle)
        return places

    def _drawn(self, numbers: Tensor, chance: Chance) -> Tensor:
        """Which of the table's numbers in order each becomes: of those beside it the nearer the likelier."""
        low = torch.bucketize(numbers, self._levels, right=True).sub_(1)
        low.clamp_(0, len(self._levels) - 2)
        least, most = self._levels[low], self._levels[low + 1]
        places = chance.to_steps((numbers - least).div_(most - least).add_(low), 1.0)
        level = self._levels[places.clamp_(0, len(self._levels) - 1).long()]
        return torch.searchsorted(self._ordered, level).to(torch.int32)

    def parts(self) -> dict[str, Tensor]:
        """The sizes, and the table."""
        return {"weight.absmax": self._sizes.view(-1), "weight.quant_map": self._table}


@dataclass(frozen=True, slots=True)
class FourBitScheme(Scheme):
    """Flat codes, and a description a layer."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether rows are whole blocks: those of the program may run across rows."""
        return not shape[-1] % self.multiple

    def takes(self, weight: QuantisedWeight) -> bool:
        """See `Scheme`: also in the block and the dtype that are written."""
        is_alike = (
            isinstance(weight, Blocks) and weight.block == BLOCK and weight.dtype == torch.bfloat16
        )
        return is_alike and weight.storage == self.storage

    def codes(self, shape: Sequence[int]) -> tuple[int, int]:
        """A column of bytes."""
        return math.prod(shape) // 2, 1

    def encoder(self, key: str, shape: Sequence[int]) -> Encoder:
        """What encodes one weight."""
        rows, columns = shape
        return FourBits(key, (rows, columns), self.dtype, self.storage)

    def beside(self, encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
        """The sizes, the table, and the description."""
        layer = encoder.key.removesuffix(".weight")
        for name, part in encoder.parts().items():
            yield f"{layer}.{name}", part
        told = {
            "quant_type": self.storage,
            "blocksize": BLOCK,
            "dtype": "bfloat16",
            "shape": list(encoder.shape),
        }
        text = bytearray(json.dumps(told).encode())
        yield layer + _ENDINGS[self.storage], torch.frombuffer(text, dtype=torch.uint8)
