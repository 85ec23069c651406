"""GGUF: blocks of 32 to 256 numbers, decoded by the `gguf` package of llama.cpp's authors."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import QuantisedError
from ..reading.gguf_file import GgufFile
from ..reading.gguf_header import TYPES
from .memory import fresh
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
_SOME = 1 << 20  # numbers that are decoded at once
_LONG = 256  # numbers of a block, of types that are not in the table
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

        Of types that choose vectors of several numbers together there is none of a single number: the
        largest of a block takes its place.
        """
        codes = parts["codes"]
        begin, count = start, values.numel()
        if not self.heads:
            first, last = start // self.columns, -(-(start + count) // self.columns)
            codes, begin = codes[first:last], start - first * self.columns
        units = self._units(codes)
        if self.heads:
            units = self._in_order(units.view(self.shape))
        units = units.reshape(-1)[begin : begin + count].double()
        table = _TABLES.get(self.type)
        if table is not None:
            units *= _gaps(values.double().reshape(-1).cpu() / units, torch.tensor(table).double())
        units.masked_fill_(~values.reshape(-1).cpu().isfinite(), torch.nan)
        return units.view(values.shape).to(values.device)

    def _numbers(self, codes: Tensor) -> Tensor:
        if self.type in _PLAIN:
            return codes.to(torch.float32, copy=True)
        package = gguf_package()
        kind = getattr(package.GGMLQuantizationType, self.type, None)
        if kind is not None:  # an older package does not have all
            found = fresh(len(codes), self.columns)
            with contextlib.suppress(NotImplementedError):
                _decode(
                    codes.numpy(), partial(package.quants.dequantize, qtype=kind), found.numpy()
                )
                return found
        raise QuantisedError(
            f"`{self.key}` is stored as {self.type}, which the package gguf does not decode; update "
            "it, or give the unquantised (fp16/bf16/fp32) checkpoint",
            target=self.layer,
        )

    def _units(self, codes: Tensor) -> Tensor:
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
