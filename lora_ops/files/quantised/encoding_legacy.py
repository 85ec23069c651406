"""Encoding into ComfyUI's first scaled float8: a `scale_weight` a layer, and a marker for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .encoding import Encoder, ScaledFloat
from .scheme import Scheme
from .schemes import MARKER

_MODEL = "model.diffusion_model."


class LegacyFloat(ScaledFloat):
    """The same numbers as with `weight_scale`, under the older name."""

    def parts(self) -> dict[str, Tensor]:
        """The scale."""
        return {"scale_weight": self.scale.reshape(())}


@dataclass(frozen=True, slots=True)
class LegacyScheme(Scheme):
    """Without configurations."""

    def markers(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """The marker of the diffusion model: of two numbers, which says that its inputs are not rounded."""
        prefix = _MODEL if any(key.startswith(_MODEL) for key in keys) else ""
        return {prefix + MARKER: torch.zeros(2, dtype=self.dtype)}

    def beside(self, encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
        """The scale."""
        layer = encoder.key.removesuffix(".weight")
        for name, part in encoder.parts().items():
            yield f"{layer}.{name}", part
