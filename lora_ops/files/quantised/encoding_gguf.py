"""Encoding into the blocks of GGUF, by the package `gguf`, which decodes them too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import QuantisedError
from ..reading.gguf_header import TYPES, BlockType
from .encoding import Chance, Encoder
from .gguf import gguf_package
from .gguf_chance import STEPS, by_chance
from .scheme import Scheme

_TYPES: Mapping[str, BlockType] = {one.name: one for one in TYPES.values()}


class GgufBlocks(Encoder):
    """Blocks of numbers of a row; the scale of each is among its codes.

    Args:
        key: Of the weight.
        shape: Of the weight, (rows, columns).
        dtype: Of the codes: bytes.
        type: ggml's name of the blocks.
    """

    def __init__(
        self, key: str, shape: tuple[int, int], dtype: torch.dtype, type: str = "Q8_0"
    ) -> None:
        super().__init__(key, shape, dtype)
        self._type, self.chances = type, type in STEPS

    def encode(
        self, rows: Tensor, first: int, chance: Chance | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Encoder`; not all types follow chance."""
        package, exact = gguf_package(), rows.float().contiguous()
        self.check(torch.stack(torch.aminmax(exact)))
        kind = package.GGMLQuantizationType[self._type]
        codes = torch.from_numpy(package.quants.quantize(exact.numpy(), kind))
        if chance is not None and self.chances:
            codes = by_chance(self._type, codes, exact, chance)
        numbers = torch.from_numpy(package.quants.dequantize(codes.numpy(), kind))
        self.count(exact, numbers, first)
        return codes, numbers

    def parts(self) -> dict[str, Tensor]:
        """None."""
        return {}


@dataclass(frozen=True, slots=True)
class GgufScheme(Scheme):
    """A type of GGUF: blocks along the rows, of kernels too, and nothing beside them."""

    @property
    def by_chance(self) -> bool:
        """See `Scheme`: where the numbers of a block are evenly spaced."""
        return self.storage in STEPS

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the rows of a weight are whole blocks."""
        return not math.prod(shape[1:]) % self.multiple

    def codes(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows, and bytes of a row."""
        one = _TYPES[self.storage]
        return shape[0], math.prod(shape[1:]) // one.block * one.size

    def encoder(self, key: str, shape: Sequence[int]) -> Encoder:
        """What encodes one weight."""
        matrix = shape[0], math.prod(shape[1:])
        return GgufBlocks(key, matrix, self.dtype, self.storage)

    def beside(self, encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
        """Nothing."""
        return iter(())


#: By ggml's name, the types in blocks that the package encodes: none of `Q2_K` to `Q6_K`, nor of `IQ`.
ENCODED: Mapping[str, GgufScheme] = {
    name: GgufScheme(name, "", "uint8", GgufBlocks, multiple=_TYPES[name].block)
    for name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4", "TQ1_0", "TQ2_0")
}
#: Those that can be asked for, by the name that users give them: ComfyUI's loaders of GGUF decode them.
GGUF_SCHEMES: Mapping[str, GgufScheme] = {
    name.lower(): ENCODED[name] for name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
}
#: Those that hold numbers as they are.
GGUF_NUMBERS = ("bf16", "f16", "f32")
GGUF_TYPES = (*GGUF_SCHEMES, *GGUF_NUMBERS)
#: What `general.file_type` is of a file that is mostly of a type: llama.cpp's numbers.
FILE_TYPES: Mapping[str, int] = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "bf16": 32,
}


def check_package() -> None:
    """Raise a `QuantisedError` if what encodes is not installed."""
    try:
        gguf_package()
    except QuantisedError as error:
        raise QuantisedError(
            "blocks of GGUF are encoded by the package gguf, which is not installed: `pip install gguf`, or "
            "write `bf16` or `f16`, which need none"
        ) from error
