"""Numbers as weights can be stored with scales, by looking at all that can be: in float64."""

from __future__ import annotations

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
    if to == "int8":
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
