"""A tiny Flux that ComfyUI's own detection accepts, with numbers, a LoRA, and the ways it can be stored."""

from __future__ import annotations

import torch
from keys import checkpoints
from safetensors.torch import load_file

SHAPES = {
    **checkpoints.flux(),
    **{f"{name}.in_layer.weight": (128, 256) for name in ("time_in", "guidance_in")},
}
FORMATS = ("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise")
DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
}
UNET = "diffusion_model."
LAYERS = ("double_blocks.0.img_attn.qkv", "double_blocks.0.txt_mlp.2", "single_blocks.0.linear1")
STRENGTH = 0.8
ALPHA = 3.0
RANK = 4


def numbers(seed, dtype=torch.float32):
    """The weights, random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) * 0.3).to(dtype)
        for name, shape in SHAPES.items()
    }


def adapter():
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for layer in LAYERS:
        out, into = SHAPES[f"{layer}.weight"]
        tensors[f"{UNET}{layer}.lora_up.weight"] = torch.randn(out, RANK, generator=generator)
        tensors[f"{UNET}{layer}.lora_down.weight"] = torch.randn(RANK, into, generator=generator)
        tensors[f"{UNET}{layer}.alpha"] = torch.tensor(ALPHA)
    tensors[f"{UNET}{LAYERS[0]}.diff_b"] = torch.randn(384, generator=generator)
    return tensors


def host_name(name):
    return UNET + name.replace("_norm.scale", "_norm.weight")


def stored(path):
    """What a file's numbers are, by the host's names."""
    return {host_name(name): weight.double() for name, weight in load_file(path).items()}


def tuned(base, strength=STRENGTH):
    """A checkpoint with the adapter on it, in float64."""
    found, lora = dict(base), adapter()
    for layer in LAYERS:
        up, down = (lora[f"{UNET}{layer}.lora_{part}.weight"].double() for part in ("up", "down"))
        key = f"{UNET}{layer}.weight"
        found[key] = found[key] + strength * ALPHA / RANK * (up @ down)
    key = f"{UNET}{LAYERS[0]}.bias"
    found[key] = found[key] + strength * lora[f"{UNET}{LAYERS[0]}.diff_b"].double()
    return found


def rounded(weights, dtype):
    """Weights as that dtype would store them."""
    return {key: one.float().to(dtype).double() for key, one in weights.items()}


def distance(found, exact):
    """The largest relative error of a weight; both have the same ones."""
    assert found.keys() == exact.keys()
    return max(float((found[key] - exact[key]).norm() / exact[key].norm()) for key in exact)
