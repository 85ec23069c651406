"""A loaded model as a source of tensors: every weight as it takes effect, in fp32, one at a time.

Importing this takes the core, and time: nodes do so when they run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...lora_ops import TensorSource
from . import host

_UNET, _ENCODERS = "diffusion_model.", "text_encoders."
# What is held and not computed with. How inputs of quantised layers are rounded; and a projection
# that the host makes for every CLIP-L: where the file has none, as of SD1 and SDXL, it is whatever
# the memory held. HiDream alone reads it.
_UNREAD = (".input_scale", ".pre_quant_scale", "clip_l.transformer.text_projection.weight")


class ModelSource(TensorSource):
    """The diffusion model of a MODEL, and the text encoders of a CLIP, as one checkpoint.

    A weight is what the model computes with: converted out of its storage (fp8, int8, nvfp4, …),
    with all patches that are on it, in fp32 and without being rounded back. Hooks are none: they
    belong to a conditioning. Of a MODEL there are the parameters of the diffusion model alone, not
    those of the sampling around it.

    Attributes:
        name: What messages call it.
        injections: What else acts on its layers as they run, by name; it is in no weight.
    """

    def __init__(self, name: str, model: Any, clip: Any = None) -> None:
        """Name the weights of a MODEL or None, and of a CLIP or None.

        Raises:
            QuantisedError: Another pack holds weights in a form that only that pack can read.
        """
        self.name = name
        self.injections: list[str] = []
        self._of: dict[str, tuple[Any, str]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        if model is not None:
            self._add(model, "", _UNET)
        if clip is not None:
            self._add(clip.patcher, _ENCODERS, "")

    def _add(self, patcher: Any, prefix: str, inside: str) -> None:
        self.injections += host.injections(patcher)
        stored: dict[str, str] = {}
        for key, shape in host.shapes(patcher).items():
            if key.startswith(inside) and not key.endswith(_UNREAD):
                self._of[prefix + key] = (patcher, key)
                self._shapes[prefix + key] = shape
                if kind := host.quantisation(patcher, key):
                    stored[key] = kind
        if stored:
            self._refuse(stored)

    def _refuse(self, stored: Mapping[str, str]) -> None:
        from ...lora_ops import QuantisedError
        from ...lora_ops.report import counted

        kinds = ", ".join(sorted(set(stored.values())))
        raise QuantisedError(
            f"{self.name} holds {counted(len(stored), 'weight')} quantised ({kinds}, see "
            f"`{next(iter(stored))}`) by the pack that loaded it, as GGUF and nf4 loaders do, and only "
            "that pack can read them; load the unquantised (fp16/bf16/fp32) model, or one in fp8, with "
            "ComfyUI's own loader"
        )

    def keys(self) -> Sequence[str]:
        """All weights, by their names in a checkpoint of the host's own making."""
        return list(self._of)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a weight as it is used."""
        return self._shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        """Always float32: a patched weight has no other storage."""
        return torch.float32

    def tensor(self, key: str) -> Tensor:
        """A weight as it takes effect, on the CPU; the caller owns it."""
        return self.tensor_on(key, "cpu")

    def tensor_on(self, key: str, device: torch.device | str) -> Tensor:
        """The same on another device."""
        patcher, own = self._of[key]
        return host.effective_weight(patcher, own, device)

    def place(self, key: str) -> tuple[Any, str]:
        """The host's patcher that holds a weight, and its key there."""
        return self._of[key]


class NoModel(TensorSource):
    """The base of a difference: zeros for every weight of a source.

    Attributes:
        name: What messages call it.
        injections: None.
    """

    injections: Sequence[str] = ()

    def __init__(self, like: ModelSource) -> None:
        self.name = "nothing"
        self._like = like

    def keys(self) -> Sequence[str]:
        """The names of the other source's weights."""
        return self._like.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        """The same as for the weight of the other source."""
        return self._like.shape(key)

    def dtype(self, key: str) -> torch.dtype:
        """The same as for the weight of the other source."""
        return self._like.dtype(key)

    def tensor(self, key: str) -> Tensor:
        """Zeros, on the CPU."""
        return torch.zeros(self.shape(key), dtype=self.dtype(key))
