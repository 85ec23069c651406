"""A tiny Flux that ComfyUI's own detection accepts, with numbers, and the ways it can be quantised."""

from __future__ import annotations

import torch
from keys import checkpoints

SHAPES = {
    **checkpoints.flux(),
    **{f"{name}.in_layer.weight": (128, 256) for name in ("time_in", "guidance_in")},
}
FORMATS = ("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise")


def numbers(seed, dtype=torch.float32):
    """The weights, random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) * 0.3).to(dtype)
        for name, shape in SHAPES.items()
    }
