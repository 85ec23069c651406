"""Numbers as weights can be stored with scales, by looking at all that can be: in float64."""

from __future__ import annotations

import json

import torch
from tiny_flux import LAYERS, STRENGTH, UNET, adapter, numbers
from torch import Tensor

#: Of the tiny Flux, the layers that are stored so.
STORED = [
    *(f"double_blocks.0.{side}_{part}" for side in ("img", "txt") for part in ("attn.qkv",)),
    *(f"double_blocks.0.{side}_attn.proj" for side in ("img", "txt")),
    *(f"double_blocks.0.{side}_mlp.{n}" for side in ("img", "txt") for n in (0, 2)),
    *(f"double_blocks.0.{side}_mod.lin" for side in ("img", "txt")),
    *(f"single_blocks.0.{part}" for part in ("linear1", "linear2", "modulation.lin")),
]
FLOATS = {"fp8_scaled": torch.float8_e4m3fn, "fp8_e5m2_scaled": torch.float8_e5m2}
BLOCKS = {"mxfp8": 32, "nvfp4": 16}
SCHEMES = [*FLOATS, "int8", *BLOCKS]


def exact(strength: float = STRENGTH) -> dict[str, Tensor]:
    """The baked weights, in float64."""
    found = {key: tensor.double() for key, tensor in numbers(1).items()}
    lora = adapter()
    for layer in LAYERS:
        up, down = (lora[f"{UNET}{layer}.lora_{part}.weight"].double() for part in ("up", "down"))
        found[f"{layer}.weight"] += strength * 3 / 4 * (up @ down)
    found[f"{LAYERS[0]}.bias"] += strength * lora[f"{UNET}{LAYERS[0]}.diff_b"].double()
    return found


def grid(dtype: torch.dtype) -> Tensor:
    """All finite numbers of 8 bits, in order."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    return codes[codes.isfinite()].unique()


def nearest_of(numbers: Tensor, codes: Tensor) -> Tensor:
    """The nearest of some numbers."""
    after = torch.bucketize(numbers, codes).clamp(1, len(codes) - 1)
    low, high = codes[after - 1], codes[after]
    return torch.where(numbers - low < high - numbers, low, high)


def nearest(weight: Tensor, to: str) -> Tensor:
    """Each number's distance to the nearest that can be stored, by looking at all of those."""
    codes = grid(FLOATS.get(to, torch.float8_e4m3fn))
    if to == "fp8":
        scales = torch.tensor(1.0)
    elif to == "int8":
        codes, scales = torch.arange(-127.0, 128), weight.abs().amax(dim=1, keepdim=True) / 127
    elif to in FLOATS:
        scales = weight.abs().max() / codes.max()
    else:
        largest = weight.view(len(weight), -1, BLOCKS[to]).abs().amax(dim=-1)
        if to == "mxfp8":
            scales = 2 ** (largest / 448).log2().ceil()
        else:
            whole = weight.abs().max() / 448 / 6
            scales = whole * nearest_of(largest / 6 / whole, codes)
            codes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
            codes = torch.cat([-codes, codes]).unique()
        scales = scales.repeat_interleave(BLOCKS[to], dim=1)
    return (nearest_of(weight / scales, codes.double()) * scales - weight).abs()


def config(**settings: object) -> Tensor:
    """A layer's configuration, as a tensor."""
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def turned(weight: Tensor, group: int = 64) -> Tensor:
    """A weight rotated by groups of columns, which is its own inverse."""
    signs = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]).to(weight)
    matrix = torch.ones(1, 1).to(weight)
    while len(matrix) < group:
        matrix = torch.kron(matrix, signs) / 2
    return (weight.view(len(weight), -1, group) @ matrix).view(weight.shape)


def _float8(
    weight: Tensor, blocks: tuple[int, int], dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    (rows, columns), (high, wide) = weight.shape, blocks
    tiles = weight.view(high, rows // high, wide, columns // wide)
    scales = tiles.abs().amax(dim=(1, 3), keepdim=True) / torch.finfo(dtype).max
    return (tiles / scales).view(weight.shape).to(dtype), scales.view(blocks)


def _integers(weight: Tensor, by_rows: bool = True) -> tuple[Tensor, Tensor]:
    largest = weight.abs().amax(dim=1, keepdim=True) if by_rows else weight.abs().max()
    scales = largest / 127
    return (weight / scales).round().to(torch.int8), scales


def as_others_store(layer: str, weight: Tensor, store: str) -> dict[str, Tensor]:
    """A layer in a way that other programs write: its weight, scales, and what stands beside them."""
    beside = {"input_scale": torch.tensor(0.7)}
    scales, codes = "weight_scale", weight
    if store == "old fp8":
        scales = "scale_weight"
        codes, found = _float8(weight, (1, 1))
        found, beside = found.reshape(()), {"scale_input": torch.tensor(0.7)}
    elif store == "fp8 e5m2":
        codes, found = _float8(weight, (1, 1), torch.float8_e5m2)
        found, beside = found.reshape(()), beside | {"comfy_quant": config(format="float8_e5m2")}
    elif store == "fp8 by rows, bf16 scales":
        codes, found = _float8(weight, (len(weight), 1))
        found = found.bfloat16()
    elif store == "fp8 by tiles":
        scales = "weight_scale_inv"
        codes, found = _float8(weight, (len(weight) // 64, weight.shape[1] // 64))
    elif store.startswith("int8"):
        told: dict[str, object] = {"format": "int8_tensorwise"}
        if "rotated" in store:
            codes, told = turned(weight), told | {"convrot": True, "convrot_groupsize": 64}
        codes, found = _integers(codes, by_rows="one scale" not in store)
        beside["comfy_quant"] = config(**told)
    else:
        assert store == "int4"
        scale = turned(weight).abs().amax(dim=1, keepdim=True) / 7
        four = (turned(weight) / scale).round().to(torch.int8)
        codes, found = (four[:, ::2] & 15) | (four[:, 1::2] << 4), scale
        beside["comfy_quant"] = config(format="convrot_w4a4", convrot_groupsize=64)
    parts = {"weight": codes, scales: found, **beside}
    return {f"{layer}.{name}": part.contiguous() for name, part in parts.items()}


#: Ways that others store weights, and in which they can be written again.
STORES = [
    *("old fp8", "fp8 e5m2", "fp8 by rows, bf16 scales", "fp8 by tiles"),
    *("int8 by rows", "int8 rotated", "int8 one scale"),
]


def stored_by_others(store: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint whose layers of `STORED` are stored so."""
    found: dict[str, Tensor] = {}
    for key, weight in weights.items():
        layer = key.removesuffix(".weight")
        found |= as_others_store(layer, weight, store) if layer in STORED else {key: weight}
    marker = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    return found | (marker if store == "old fp8" else {})
