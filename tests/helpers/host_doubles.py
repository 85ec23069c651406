"""ComfyUI's part in the nodes, played: the few things that the pure parts ask of it, without it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorakit.nodes.apply.patch_places import Models, Place

UNET = "diffusion_model."


@dataclass(frozen=True, eq=False)
class Patch:
    """What the host would make a patch of: the tensors under a module's name, by the rest of the key."""

    tensors: Mapping[str, Tensor]


def make_patches(tensors: Mapping[str, Tensor], places: Mapping[str, Place]) -> dict[Place, Any]:
    """As `comfy.lora.load_lora`: the last name of a place holds; without tensors there is no patch."""
    made: dict[Place, Any] = {}
    for name, place in places.items():
        own = {key[len(name) :]: one for key, one in tensors.items() if key.startswith(f"{name}.")}
        if own:
            made[place] = Patch(own)
    return made


def swap_halves(change: Tensor) -> Tensor:
    """As `comfy.utils.swap_scale_shift`."""
    return torch.cat(change.chunk(2)[::-1])


def key_map(keys: Collection[str]) -> dict[str, Place]:
    """As `comfy.lora.model_lora_keys_unet`: kohya's name, then the native one."""
    places: dict[str, Place] = {}
    for key in keys:
        if key.startswith(UNET) and key.endswith(".weight"):
            target = key.removesuffix(".weight")
            places["lora_unet_" + target.removeprefix(UNET).replace(".", "_")] = key
            places[target] = key
        elif key.startswith(UNET):
            places[key] = key
        else:
            places["text_encoders." + key.removesuffix(".weight")] = key
    return places


def models(
    unet: Mapping[str, tuple[int, ...]], encoders: Mapping[str, tuple[int, ...]] | None = None
) -> Models:
    """A MODEL, and a CLIP unless there is none, of these shapes by key."""
    shapes = {**unet, **(encoders or {})}
    return Models(
        key_map(shapes), shapes, (encoders or {}).keys(), encoders is not None, make_patches,
        swap_halves,
    )  # fmt: skip
