"""The ways in which weights can be written: ComfyUI's `comfy_quant`, a configuration a layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .comfy import ENDING
from .encoding import Encoder, Rows, ScaledFloat
from .encoding_blocks import Mxfp8, Nvfp4


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to store weights.

    Attributes:
        storage: What people call it.
        format: Its name in a layer's configuration.
        dtype: Of the codes.
        encodes: What makes codes of a weight.
        multiple: Rows and columns must be multiples of it.
        packed: Numbers in one code.
    """

    storage: str
    format: str
    dtype: torch.dtype
    encodes: type[Encoder]
    multiple: int = 1
    packed: int = 1

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a matrix of this shape can be written so."""
        return not any(size % self.multiple for size in shape)

    def codes(self, shape: Sequence[int]) -> tuple[int, int]:
        """The shape of the codes of a weight."""
        rows, columns = shape
        return rows, columns // self.packed

    def encoder(self, key: str, shape: Sequence[int]) -> Encoder:
        """What encodes one weight.

        Args:
            key: Of the weight, which ends in `.weight`.
            shape: Of the weight, (rows, columns).
        """
        rows, columns = shape
        return self.encodes(key, (rows, columns), self.dtype)

    def beside(self, encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
        """The tensors beside the codes, by key: scales, and the configuration.

        Args:
            encoder: Of a weight; the numbers are right once all of it is encoded.
        """
        layer = encoder.key.removesuffix(".weight")
        for name, part in encoder.parts().items():
            yield f"{layer}.{name}", part
        text = json.dumps({"format": self.format}).encode()
        yield layer + ENDING, torch.frombuffer(bytearray(text), dtype=torch.uint8)


#: By the name that users give it.
SCHEMES: Mapping[str, Scheme] = {
    "fp8_scaled": Scheme("fp8 e4m3, scaled", "float8_e4m3fn", torch.float8_e4m3fn, ScaledFloat),
    "fp8_e5m2_scaled": Scheme("fp8 e5m2, scaled", "float8_e5m2", torch.float8_e5m2, ScaledFloat),
    "int8": Scheme("int8", "int8_tensorwise", torch.int8, Rows),
    "mxfp8": Scheme("mxfp8", "mxfp8", torch.float8_e4m3fn, Mxfp8, multiple=32),
    "nvfp4": Scheme("nvfp4", "nvfp4", torch.uint8, Nvfp4, multiple=16, packed=2),
}
