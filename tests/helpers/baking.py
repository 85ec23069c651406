"""Random adapters for tiny checkpoints, and what a baked weight must be."""

from __future__ import annotations

import torch
from oracles import finite_values
from torch import Tensor

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters.strengths.ingredient import Ingredient

LINEAR = "blocks.0.self_attn.q"
FP8 = torch.float8_e4m3fn
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, FP8)


def randn(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(name: str, up: Tensor, down: Tensor, **others: Tensor) -> dict[str, Tensor]:
    """A layer's keys as PEFT and ComfyUI spell them."""
    keys = {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
    return keys | {f"{name}.{role}": tensor for role, tensor in others.items()}


def thin(name: str, shape: tuple[int, ...], rank: int = 3, seed: int = 1, size: float = 0.1):
    """A random layer for a weight of that shape."""
    up = randn(shape[0], rank, *(1 for _ in shape[2:]), seed=seed, size=size)
    return pair(name, up, randn(rank, *shape[1:], seed=seed + 1))


def whole_model(shapes, seed: int = 1) -> dict[str, Tensor]:
    """A layer for each matrix of a checkpoint without prefixes."""
    return {
        key: tensor
        for number, (name, shape) in enumerate(shapes.items())
        if name.endswith(".weight") and len(shape) > 1
        for key, tensor in thin(
            f"diffusion_model.{name.removesuffix('.weight')}", shape, seed=seed + number
        ).items()
    }


def adapter(tensors: dict[str, Tensor], strength: float = 1.0, name: str = "lora", **more):
    return Ingredient(DictSource(tensors, name=name), strength, **more)


def distance_to_nearest(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """How far each float64 number is from the nearest that a dtype holds."""
    if dtype.itemsize > 2:
        return (exact.to(dtype).double() - exact).abs()
    values = finite_values(dtype)
    above = torch.searchsorted(values, exact.contiguous()).clamp(1, len(values) - 1)
    return torch.minimum((values[above] - exact).abs(), (exact - values[above - 1]).abs())


def is_rounded_once(found: Tensor, exact: Tensor) -> bool:
    """Whether each number is the nearest of its dtype, but for float32's own rounding of ties."""
    slack = (0 if found.dtype == torch.float64 else 1e-6) * exact.abs().max() + 1e-15
    error = (found.double() - exact).abs()
    return bool((error <= distance_to_nearest(exact, found.dtype) + slack).all())
