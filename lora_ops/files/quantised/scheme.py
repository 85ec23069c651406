"""A way in which weights can be written: what makes codes of them, and what stands beside those."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...elements import Element, element_titled
from .comfy import ENDING
from .encoding import Encoder
from .weight import QuantisedWeight


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to store weights.

    Attributes:
        storage: What people call it.
        format: Its name in a layer's configuration, as ComfyUI has it; empty where it has none.
        title: Torch's name of the dtype of the codes.
        encodes: What makes codes of a weight.
        multiple: Rows and columns must be multiples of it.
        packed: Numbers in one code.
    """

    storage: str
    format: str
    title: str
    encodes: type[Encoder]
    multiple: int = 1
    packed: int = 1

    @property
    def element(self) -> Element:
        """What the codes are."""
        return element_titled(self.title)

    @property
    def dtype(self) -> torch.dtype:
        """The same as torch has it."""
        return self.element.dtype

    @property
    def by_chance(self) -> bool:
        """Whether numbers can be rounded up or down by chance."""
        return self.encodes.chances

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a matrix of this shape can be written so."""
        return not any(size % self.multiple for size in shape)

    def takes(self, weight: QuantisedWeight) -> bool:
        """Whether a weight is stored so, as far as what it is made of can tell."""
        return weight.storage == self.storage

    def markers(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Tensors that belong to no weight, by key, in a file that has some weights stored so.

        Args:
            keys: Of the weights.
        """
        return {}

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
