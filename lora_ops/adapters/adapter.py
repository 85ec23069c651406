"""Adapter: one adapter file, whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .layers import Layer


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """The layers of a file by target, and everything else that stood in it.

    Attributes:
        layers: By target: a parameter's name without ``.weight``. Full differences of other
            parameters keep the whole name (``….norm.bias``). The mapping may read lazily.
        extras: Tensors that belong to no layer, by their key, as they are.
        metadata: The file's string map.
        format: How the file was named: kohya, comfy, peft or diffusers.
        keys: By target, the key of each role (up, down, alpha, ...) in the file, also of an alpha
            that it does not have; empty for an adapter that came from no file.
    """

    layers: Mapping[str, Layer]
    extras: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    format: str
    keys: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])

    def module(self, target: str) -> str:
        """Return what a layer's keys begin with in the file; the target where it came from no file."""
        keys = self.keys.get(target)
        return target if keys is None else keys["alpha"].removesuffix(".alpha")
