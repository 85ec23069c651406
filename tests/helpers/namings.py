"""One model under both of its names, made from the tables: small, and cut as they say."""

from __future__ import annotations

import re

import torch

from lorakit.lora_ops.models.architectures import ARCHITECTURES, UNET

_WIDTH = 4
_HIGH = 8  # rows of a share

#: Architectures that diffusers has under names of its own; those of UNets follow from their layout.
TRANSLATED = [
    one
    for one in ARCHITECTURES
    if one.layout is None
    and not one.foreign_only
    and any(condition.root == "transformer." for condition in one.recognise)
]


def _whole(architecture):
    """All packings by whole names of parameters, in the order in which they are asked."""
    for packing in architecture.parameters:
        bare = not packing.native.endswith((".weight", ".bias")) or "norm" in packing.native
        yield packing, bare, packing.swapped
    for packing in architecture.packings:
        for leaf in ("weight", "bias"):
            yield packing.leaf(leaf), leaf == "bias" or "norm" in packing.native.split(".")[-1], packing.swapped  # fmt: skip


def both(architecture, seed=0, dtype=torch.float32):
    """The same numbers natively and in diffusers, by key."""
    generator = torch.Generator().manual_seed(seed)
    native: dict[str, torch.Tensor] = {}
    foreign: dict[str, torch.Tensor] = {}
    for packing, is_vector, swapped in _whole(architecture):
        name = packing.native.replace("{}", "0")
        parts = [part.replace("{}", "0") for part in packing.foreign]
        if name in native or "" in parts or any(part in foreign for part in parts):
            continue
        shares = packing.parts or (1,) * len(parts)
        # Twice as high as wide, where that tells shift and scale from more.
        shape = [_HIGH * sum(shares), *([] if is_vector else [_WIDTH])]
        whole = torch.randn(shape, generator=generator).to(dtype)
        native[name] = whole
        for part, rows in zip(parts, whole.split([_HIGH * n for n in shares]), strict=True):
            turned = torch.cat(rows.chunk(2)[::-1]) if swapped else rows
            foreign[part] = turned.reshape(2, -1) if packing.flat else turned.clone()
    for packing in architecture.fused:
        for leaf in ("weight", "bias"):
            one = packing.leaf(leaf)
            parts = [foreign.pop(part.replace("{}", "0")) for part in one.foreign]
            foreign[one.native.replace("{}", "0")] = torch.cat(parts)
    return (
        {UNET + name: tensor for name, tensor in native.items()},
        {f"transformer.{name}": tensor for name, tensor in foreign.items()},
    )


def foreign_of(architecture, native):
    """A native model under diffusers' names, by the tables."""
    found = {}
    for key, whole in native.items():
        module, _, leaf = key.rpartition(".")
        for packing in architecture.packings:
            if match := re.fullmatch(re.escape(packing.native).replace(r"\{\}", r"(\d+)"), module):
                break
        else:
            raise KeyError(key)
        shares = packing.parts or (1,) * len(packing.foreign)
        rows = whole.split([whole.shape[0] * n // sum(shares) for n in shares])
        for part, tensor in zip(packing.foreign, rows, strict=True):
            turned = torch.cat(tensor.chunk(2)[::-1]) if packing.swapped else tensor
            name = part.format(*match.groups())
            found[f"transformer.{name}.{leaf}"] = turned.clone()
    return found
