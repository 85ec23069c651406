"""GGUF: blocks of 32 to 256 numbers, decoded by the `gguf` package of llama.cpp's authors."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ...errors import QuantisedError
from ...spacing import spacing
from ..reading.gguf_file import GgufFile
from ..reading.gguf_header import TYPES
from .gguf_vectors import vector_decoder
from .weight import Parts, QuantisedWeight

_PLAIN = ("F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64")
# By type: from which byte of a block on its codes lie, and bytes of codes, of which those of the second
# stand for numbers that are larger by one step than those of the first. What lies before is scales.
_CODES: dict[str, tuple[slice, int, int]] = {
    "Q8_0": (slice(2, None), 0x00, 0x01),
    "Q4_0": (slice(2, None), 0x00, 0x11),
    "Q4_1": (slice(4, None), 0x00, 0x11),
    "Q5_0": (slice(6, None), 0x00, 0x11),
    "Q5_1": (slice(8, None), 0x00, 0x11),
    "Q2_K": (slice(16, 80), 0x00, 0x55),
    "Q3_K": (slice(32, 96), 0x00, 0x55),
    "Q4_K": (slice(16, None), 0x00, 0x11),
    "Q5_K": (slice(48, None), 0x00, 0x11),
    "Q6_K": (slice(0, 128), 0x00, 0x11),
    "TQ2_0": (slice(0, 64), 0x00, 0x55),
    # Not evenly spaced: numbers of the tables below that are 1 and 0, or 1 and -10.
    "MXFP4": (slice(1, None), 0x00, 0x22),
    "NVFP4": (slice(4, None), 0x00, 0x22),
    "IQ4_NL": (slice(2, None), 0x77, 0x88),
    "IQ4_XS": (slice(8, None), 0x77, 0x88),
}
# By type: where its scales in float16 begin, and what makes one of each scale of a group.
_SCALES: dict[str, tuple[tuple[int, ...], tuple[tuple[slice, int], ...]]] = {
    **dict.fromkeys(("Q8_0", "Q4_0", "Q5_0", "IQ4_NL"), ((0,), ())),
    **dict.fromkeys(("Q4_1", "Q5_1"), ((0, 2), ())),
    "Q2_K": ((80, 82), ((slice(0, 16), 0x11),)),
    "Q3_K": ((108,), ((slice(96, 104), 0x11), (slice(104, 108), 0xAA))),
    **dict.fromkeys(("Q4_K", "Q5_K"), ((0, 2), ((slice(4, 12), 0x01), (slice(12, 16), 0x11)))),
    "Q6_K": ((208,), ((slice(192, 208), 0x01),)),
    "IQ4_XS": ((0,), ((slice(2, 4), 0xAA), (slice(4, 8), 0x11))),
}
# Of types that choose vectors of several numbers together: which bytes of a block choose, and the step that a
# grid of single numbers with as large an error has, over the least number of a group (as measured).
_VECTORS: dict[str, tuple[Sequence[int], float]] = {
    "IQ2_XXS": ([byte for byte in range(2, 66) if (byte - 2) % 8 < 4], 3.0),
    "IQ2_XS": (range(2, 66), 2.6),
    "IQ2_S": (range(2, 74), 2.2),
    "IQ3_XXS": (range(2, 66), 4.0),
    "IQ3_S": (range(2, 106), 3.0),
}
# Steps that two roundings of one number may be apart. Each program may be off by a whole one: scales are chosen so
# that all errors together are the least, and the largest numbers need not fit. Of vectors, signs may be wrong.
_APART = {"Q8_0": 1.0, **dict.fromkeys(_VECTORS, 4.0)}
_USUALLY_APART = 2.0
_SOME = 1 << 19  # numbers that are decoded at once
_LONG = 256  # numbers of a block, of types that are in none of the tables
_FLOATS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_TABLES: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("MXFP4", "NVFP4"), (*(-x for x in _FLOATS[:0:-1]), *_FLOATS)),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS"), tuple(x / 11 for x in _LEVELS)),
}


@dataclass(frozen=True)
class Gguf(QuantisedWeight):
    """A weight in blocks.

    Attributes:
        type: ggml's name of how it is stored.
        columns: Numbers of a stored row.
        heads: In how many heads the rows were turned; 0 if they were not.
    """

    type: str
    columns: int
    heads: int = 0

    @property
    def roles_of_steps(self) -> tuple[str, ...]:
        """The codes: the scales lie among them."""
        return ("codes",)

    def check(self) -> None:
        """Raise a `QuantisedError` if the package is not installed."""
        gguf_package()

    def decode(self, parts: Parts) -> Tensor:
        """The numbers."""
        return self._in_order(self._numbers(parts["codes"]).view(self.shape))

    def steps(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """The spacing of the numbers of the place's group.

        Of types that choose vectors of several numbers together it is that of a grid with as large an error;
        of `IQ1` the largest number of a block.
        """
        units = self._run(self._units, parts["codes"], values, start)
        table = _TABLES.get(self.type)
        if table is not None:
            flat = values.double().reshape(-1).cpu()
            units *= _gaps(flat / units, torch.tensor(table).double())
        units.masked_fill_(~values.reshape(-1).cpu().isfinite(), torch.nan)
        return units.view(values.shape).to(values.device)

    def reach(self, parts: Parts, values: Tensor, start: int) -> Tensor:
        """Some of the steps, what the rounding of scales makes of the largest code, and that of decoding."""
        steps = self.steps(parts, values, start) * _APART.get(self.type, _USUALLY_APART)
        steps += spacing(values, torch.float32)
        if self.type not in _SCALES:
            return steps
        unsure = self._run(self._unsure, parts["codes"], values, start)
        return steps.add_(unsure.view(values.shape).to(values.device))

    def _run(
        self, told: Callable[[Tensor], Tensor], codes: Tensor, values: Tensor, start: int
    ) -> Tensor:
        """What is told of codes, of a run of the weight alone; float64."""
        begin, count = start, values.numel()
        if not self.heads:
            first, last = start // self.columns, -(-(start + count) // self.columns)
            codes, begin = codes[first:last], start - first * self.columns
        found = self._in_order(told(codes).view(self.shape)) if self.heads else told(codes)
        return found.reshape(-1)[begin : begin + count].double()

    def _unsure(self, codes: Tensor) -> Tensor:
        halves, ones = _SCALES[self.type]
        blocks = codes.view(-1, _sizes()[self.type])
        coarse = blocks.clone()
        for place in halves:
            scale = blocks[:, place : place + 2].contiguous().view(torch.float16)
            coarse[:, place : place + 2] = spacing(scale, torch.float16).half().view(torch.uint8)
        kinds = [coarse]
        if ones:
            kinds.append(blocks.clone())
            for places, byte in ones:
                kinds[1][:, places] = byte
        found = torch.zeros(codes.shape[0], self.columns)
        for kind in kinds:
            # The least code and the largest; that of 8 bits has a sign.
            for byte in (0x00, 0x7F if self.type == "Q8_0" else 0xFF):
                kind[:, _CODES[self.type][0]] = kind[:, _before(self.type)] = byte
                found += self._numbers(kind.view(codes.shape)).abs_()
        return found

    def _numbers(self, codes: Tensor) -> Tensor:
        if self.type in _PLAIN:
            return codes.to(torch.float32, copy=True)
        package = gguf_package()
        kind = getattr(package.GGMLQuantizationType, self.type, None)
        if kind is not None:  # an older package does not have all
            found = torch.empty(len(codes), self.columns)
            with contextlib.suppress(NotImplementedError):
                theirs = partial(package.quants.dequantize, qtype=kind)
                ours = vector_decoder(package, self.type)
                _decode(codes.numpy(), ours or theirs, found.numpy())
                return found
        raise QuantisedError(
            f"`{self.key}` is stored as {self.type}, which the package gguf does not decode; update "
            "it, or give the unquantised (fp16/bf16/fp32) checkpoint",
            target=self.layer,
        )

    def _units(self, codes: Tensor) -> Tensor:
        if self.type in _VECTORS:
            places, times = _VECTORS[self.type]
            blocks = codes.reshape(-1, _sizes()[self.type]).clone()
            blocks[:, list(places)] = 0
            return self._numbers(blocks.view(codes.shape)).abs_().mul_(times)
        known = _CODES.get(self.type)
        if known is None:
            groups = self._numbers(codes).abs().view(-1, _LONG)
            return groups.amax(dim=1, keepdim=True).expand_as(groups).reshape(-1)
        places, low, high = known
        blocks = codes.view(-1, _sizes()[self.type])
        found: list[Tensor] = []
        for byte in (low, high):
            filled = blocks.clone()
            filled[:, _before(self.type)] = 0
            filled[:, places] = byte
            found.append(self._numbers(filled.view(codes.shape)))
        return found[1].sub_(found[0]).abs_()

    def _in_order(self, weight: Tensor) -> Tensor:
        if not self.heads:
            return weight
        halves = weight.view(self.heads, weight.shape[0] // self.heads // 2, 2, *weight.shape[1:])
        return halves.transpose(1, 2).reshape(weight.shape)


def _decode(codes: Any, dequantize: Callable[[Any], Any], out: Any) -> None:
    """Decode rows, some at a time, so that what is in between stays in the cache; by all threads."""
    import numpy as np  # not above: a tenth of a second for whoever looks at headers

    step = max(1, _SOME // out.shape[1])

    def put(first: int) -> None:
        rows = slice(first, first + step)
        with np.errstate(all="ignore"):  # scales that are none are found by whoever asks
            out[rows] = dequantize(codes[rows])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for _ in threads.map(put, range(0, len(out), step)):
            pass


def _before(type: str) -> slice:
    """Bytes of a block that hold the high bits of codes, which are to be 0."""
    return {
        "Q5_0": slice(2, 6),
        "Q5_1": slice(4, 8),
        "Q3_K": slice(0, 32),
        "Q5_K": slice(16, 48),
        "Q6_K": slice(128, 192),
    }.get(type, slice(0))


@cache
def _sizes() -> dict[str, int]:
    return {one.name: one.size for one in TYPES.values()}


def _gaps(numbers: Tensor, table: Tensor) -> Tensor:
    """The wider of the gaps beside the nearest number of a table, by magnitude."""
    gaps = table.diff()
    wider = torch.maximum(torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]]))
    middles = (table[1:] + table[:-1]) / 2
    either = (wider[torch.bucketize(x.nan_to_num(), middles)] for x in (numbers, -numbers))
    return torch.maximum(*either)


def gguf_package() -> Any:
    """The package that decodes.

    Raises:
        QuantisedError: It is not installed.
    """
    try:
        importlib.import_module("gguf.quants")
        return importlib.import_module("gguf")
    except ImportError as error:
        raise QuantisedError(
            "a GGUF file is decoded by the package gguf, which is not installed: `pip install gguf`, or "
            "give the unquantised (fp16/bf16/fp32) checkpoint as safetensors"
        ) from error


def gguf_weights(file: GgufFile) -> dict[str, Gguf]:
    """The weights of a file that are stored in blocks, by key."""
    found: dict[str, Gguf] = {}
    for key in file.keys():  # noqa: SIM118
        kind, heads, shape = file.type(key).name, file.heads(key), file.logical_shape(key)
        if kind in _PLAIN and not heads:
            continue
        rows, row = max(1, file.shape(key)[0]), file.type(key)
        columns = file.stored_size(key) // row.size * row.block // rows
        found[key] = Gguf(key, shape, file.storage(key), {"codes": key}, kind, columns, heads)
    return found
