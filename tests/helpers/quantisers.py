"""Weights as other programs quantise them, by the layouts' definitions: more than one way for each scheme."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from storing import nearest_of
from torch import Tensor

#: Of what is stored.
LAYER = "diffusion_model.double_blocks.0.img_attn.proj"
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FOURS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]).double()


def text(**settings: object) -> Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def tiled(scales: Tensor) -> Tensor:
    """Scales of 128 rows and a multiple of 4 blocks, by the formula of their places."""
    row, column = torch.meshgrid(*(torch.arange(n) for n in scales.shape), indexing="ij")
    place = (column // 4) * 512 + (row % 32) * 16 + (row // 32) * 4 + column % 4
    found = torch.empty(scales.numel(), dtype=torch.uint8)
    found[place.flatten()] = scales.view(torch.uint8).flatten()
    return found.view(scales.shape)


def packed(codes: Tensor, high_first: bool) -> Tensor:
    first, last = codes[:, ::2].to(torch.uint8), codes[:, 1::2].to(torch.uint8)
    return first << 4 | last if high_first else last << 4 | first


def float8(weight: Tensor, room: float, dtype: torch.dtype = E4M3) -> dict[str, Tensor]:
    scale = (weight.abs().max() * room / torch.finfo(dtype).max).float()
    codes = (weight / scale.double()).to(dtype)
    return {"weight": codes, "weight_scale": scale}


def float8_by_rows(weight: Tensor, room: float) -> dict[str, Tensor]:
    scale = (weight.abs().amax(dim=1, keepdim=True) * room / 448).float()
    return {"weight": (weight / scale.double()).to(E4M3), "weight_scale": scale}


def int8(weight: Tensor, room: float) -> dict[str, Tensor]:
    scale = (weight.abs().amax(dim=1, keepdim=True) * room / 127).float()
    codes = (weight / scale.double()).round().to(torch.int8)
    told = text(format="int8_tensorwise")
    return {"weight": codes, "weight_scale": scale, "comfy_quant": told}


def mxfp8(weight: Tensor, room: float) -> dict[str, Tensor]:
    exponents = (weight.view(128, -1, 32).abs().amax(-1) * room / 448).log2().ceil()
    codes = (weight / (2**exponents).repeat_interleave(32, 1)).to(E4M3)
    scales = tiled((exponents + 127).to(torch.uint8))
    return {"weight": codes, "weight_scale": scales, "comfy_quant": text(format="mxfp8")}


def nvfp4(weight: Tensor, room: float) -> dict[str, Tensor]:
    whole = (weight.abs().max() * room / 448 / 6).float()
    blocks = (weight.view(128, -1, 16).abs().amax(-1) / 6 / whole.double()).to(E4M3)
    scales = (blocks.double() * whole.double()).repeat_interleave(16, 1)
    sizes = nearest_of((weight.abs() / scales).nan_to_num(0, 6, 6).clamp(max=6), FOURS)
    codes = torch.bucketize(sizes, FOURS) + 8 * (weight < 0)
    return {
        "weight": packed(codes, high_first=True),
        "weight_scale": tiled(blocks),
        "weight_scale_2": whole,
        "comfy_quant": text(format="nvfp4"),
    }


def turned(weight: Tensor) -> Tensor:
    """Each four columns by ConvRot's matrix of four."""
    signs = torch.ones(4, 4) - 2 * torch.eye(4).flip(1)
    return (weight.view(-1, 4) @ (signs.double() / 2)).view(weight.shape)


def rotated(weight: Tensor, room: float) -> dict[str, Tensor]:
    found = int8(turned(weight), room)
    told = text(format="int8_tensorwise", convrot=True, convrot_groupsize=4)
    return {**found, "comfy_quant": told}


def w4a4(weight: Tensor, room: float) -> dict[str, Tensor]:
    scale = (turned(weight).abs().amax(dim=1, keepdim=True) * room / 7).float()
    codes = (turned(weight) / scale.double()).round().to(torch.int64) & 15
    told = text(format="convrot_w4a4", convrot_groupsize=4)
    found = packed(codes, high_first=False).view(torch.int8)
    return {"weight": found, "weight_scale": scale, "comfy_quant": told}


def nf4(weight: Tensor, room: float, dtype: str = "bfloat16") -> dict[str, Tensor]:
    table = torch.linspace(-1, 1, 16).double().abs().sqrt() * torch.linspace(-1, 1, 16).sign()
    sizes = (weight.view(-1, 64).abs().amax(dim=1) * room).float()
    shares = weight.view(-1, 64) / sizes.double()[:, None]
    codes = torch.bucketize(nearest_of(shares, table), table).view(1, -1)
    told = text(blocksize=64, dtype=dtype, shape=list(weight.shape), quant_type="nf4")
    return {
        "weight": packed(codes, high_first=True).view(-1, 1),
        "weight.absmax": sizes,
        "weight.quant_map": table.float(),
        "weight.quant_state.bitsandbytes__nf4": told,
    }


def torchao(weight: Tensor, room: float) -> dict[str, Tensor]:
    found = int8(weight, room)
    return {"_weight_qdata": found["weight"], "_weight_scale": found["weight_scale"]}


#: The metadata of a file of torchao's.
DESCRIBED = {
    f"{LAYER}.weight": json.dumps(
        {"_type": "Int8Tensor", "_data": {"dtype": {"_type": "torch.dtype", "_data": "bfloat16"}}}
    ),
    "tensor_names": json.dumps([f"{LAYER}.weight"]),
}
#: By what people call it. Each stores a weight of 128 rows, whose scales leave `room` above its largest number.
STORES: dict[str, Callable[[Tensor, float], dict[str, Tensor]]] = {
    "fp8 e4m3": float8,
    "fp8 e5m2": lambda weight, room: float8(weight, room, E5M2),
    "fp8 by rows": float8_by_rows,
    "mxfp8": mxfp8,
    "nvfp4": nvfp4,
    "int8": int8,
    "int8, rotated": rotated,
    "int4, rotated": w4a4,
    "nf4": nf4,
    "nf4 of float32": lambda weight, room: nf4(weight, room, "float32"),
    "torchao": torchao,
}
