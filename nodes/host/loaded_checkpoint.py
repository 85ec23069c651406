"""A loaded MODEL, with CLIP and VAE, as the checkpoint file that it would be.

Importing this takes the core, and time: nodes do so when they run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...lora_ops import ArgumentError
from ...lora_ops.files import FileSource
from . import host, model_files
from .model_source import ModelSource

_UNET = "diffusion_model."
_WEIGHT = ".weight"
# The configuration of a layer whose weight is stored with scales.
_SCALED = ".comfy_quant"
# Above all numbers that the host itself puts into a file.
_CODES = 1 << 40


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A tensor of a loaded model.

    Attributes:
        tensor: As it lies in memory, before patches.
        patcher: What computes it, where patches are on it; None where it is what it is.
        key: Its key there.
    """

    tensor: Tensor
    patcher: Any = None
    key: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A tensor of the checkpoint.

    Attributes:
        parts: What it is made of, one after another along its first axis.
        turned: Whether rows and columns are swapped.
        scaled: The format in which the host holds the weight, where that is with scales.
    """

    parts: tuple[Held, ...]
    turned: bool = False
    scaled: str = ""

    @property
    def is_raw(self) -> bool:
        """Whether it is one of the tensors in memory, byte for byte."""
        return len(self.parts) == 1 and not self.turned and self.parts[0].patcher is None

    @property
    def is_patched(self) -> bool:
        """Whether patches are on some of it."""
        return any(one.patcher is not None for one in self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        shapes = [_shape(one) for one in self.parts]
        if self.turned:
            return shapes[0][::-1]
        return shapes[0] if len(shapes) == 1 else (sum(one[0] for one in shapes), *shapes[0][1:])

    def tensor(self) -> Tensor:
        """Its numbers, on the CPU: those in memory, or float32 where patches are on them."""
        if self.is_raw:
            return self.parts[0].tensor.cpu()
        found = [_computed(one) for one in self.parts]
        whole = found[0] if len(found) == 1 else torch.cat(found)
        return whole.mT.contiguous() if self.turned else whole


class LoadedCheckpoint(FileSource):
    """Reads like a file: weights under patches are float32, all others as they lie in memory.

    What the host holds quantised, without patches, is its codes and scales, as in a file.

    Attributes:
        name: What messages call it.
        metadata: What a file of it says of itself.
        paths: None.
        injections: What else acts on its layers as they run, by name; it is in no weight.
        entries: Its tensors, by key.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        clip: Any = None,
        vae: Any = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Name the tensors of a MODEL, and of a CLIP and VAE or None.

        Raises:
            QuantisedError: Another pack holds weights in a form that only that pack can read.
            ArgumentError: The host gives a tensor a form in a file that is not known here.
        """
        self.name, self.metadata = name, dict(metadata or {})
        self.paths: tuple[Path, ...] = ()
        self.injections = ModelSource(name, model, clip).injections
        self._held: list[Held] = []
        self._formats: dict[int, str] = {}
        unet = self._coded(model, _UNET)
        encoders = None
        if clip is not None:
            encoders = self._coded(clip.patcher)
            encoders |= {
                key: self._code(Held(one)) for key, one in model_files.stored_beside(clip).items()
            }
        parts = None
        if vae is not None:
            parts = {key: self._code(Held(one)) for key, one in model_files.stored_vae(vae).items()}
        named = model_files.in_checkpoint(model, unet, encoders, parts)
        self.entries = {key: self._entry(key, one) for key, one in named.items()}

    def _coded(self, patcher: Any, inside: str = "") -> dict[str, Tensor]:
        """A number for each tensor of a model in its place: how they are named is then read off."""
        state = model_files.stored(patcher, inside)
        found: dict[str, Tensor] = {}
        for key, tensor in state.items():
            layer = key.rpartition(".")[0]
            marker = state.get(layer + _SCALED)
            is_patched = bool(patcher.patches.get(layer + _WEIGHT))
            if key.endswith(_WEIGHT) or marker is None:
                held = Held(tensor, patcher if patcher.patches.get(key) else None, key)
            elif is_patched and not key.endswith(".bias"):
                continue  # scales of a weight that is computed
            else:
                held = Held(tensor)
            code = self._code(held)
            if marker is not None and key.endswith(_WEIGHT) and is_patched:
                self._formats[len(self._held) - 1] = _format_of(marker)
            found[key.removeprefix(inside)] = code
        return found

    def _code(self, held: Held) -> Tensor:
        """Stands for a tensor: `number`, or `[number, number + 1]` with as many axes as it has."""
        number = _CODES + 2 * len(self._held)
        self._held.append(held)
        axes = len(_shape(held))
        if axes < 2:
            return torch.full((1,) * axes, number)
        return torch.tensor([number, number + 1]).reshape(1, 2, *(1,) * (axes - 2))

    def _entry(self, key: str, code: Tensor) -> Entry:
        if code.dtype != torch.int64 or not code.numel() or int(code.min()) < _CODES:
            return Entry((Held(code),))  # the host's own: a flag, or positions
        numbers = (code.flatten() - _CODES).tolist()
        is_pair = code.ndim >= 2
        turned = code.ndim == 2 and tuple(code.shape) == (2, 1)
        firsts = numbers[::2] if is_pair else numbers
        pairs = [one + at for one in firsts for at in range(1 + is_pair)]
        if pairs != numbers or any(one % 2 for one in firsts):
            raise ArgumentError(
                f"ComfyUI saves `{key}` of this model in a form that is not known here; save it with "
                "ComfyUI's own node"
            )
        places = [one // 2 for one in firsts]
        scaled = self._formats.get(places[0], "") if len(places) == 1 else ""
        return Entry(tuple(self._held[at] for at in places), turned, scaled)

    def keys(self) -> Sequence[str]:
        """All tensors, by their names in a checkpoint."""
        return list(self.entries)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor as it would be in the file."""
        return self.entries[key].shape

    def dtype(self, key: str) -> torch.dtype:
        """Of a tensor in memory its own; float32 of one that is computed."""
        one = self.entries[key]
        return one.parts[0].tensor.dtype if one.is_raw else torch.float32

    def result_dtype(self, key: str) -> torch.dtype:
        """The one in which it lies in memory; bfloat16 for what has scales there."""
        one = self.entries[key]
        return torch.bfloat16 if one.scaled else one.parts[0].tensor.dtype

    def tensor(self, key: str) -> Tensor:
        """A tensor, on the CPU."""
        return self.entries[key].tensor()

    def close(self) -> None:
        """Nothing to let go of."""


def _shape(held: Held) -> tuple[int, ...]:
    if held.patcher is None:
        return tuple(held.tensor.shape)
    return host.shape_of(held.patcher, held.key)


def _computed(held: Held) -> Tensor:
    if held.patcher is None:
        return held.tensor.cpu().to(torch.float32)
    return host.effective_weight(held.patcher, held.key)


def _format_of(marker: Tensor) -> str:
    """What the configuration of a layer says that its weight is stored as."""
    told = json.loads(bytes(marker.cpu().to(torch.uint8).tolist()).decode())
    return str(told.get("format", "scaled"))
