"""Tiny UNets and ControlNets of them, under their native names, and the Control-LoRAs that are expected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from keys.checkpoints import prefixed, unet
from safetensors.torch import save_file
from torch import Tensor

from lorakit.lora_ops import extract_control_file, open_source, plan_control_file

Tensors = dict[str, Tensor]

SHARED = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")
#: Widths of the convolutions that bring an image to the size of a latent, before the last.
HINTS = (16, 16, 32, 32, 96, 96, 256)
UNETS = {
    "sd1": unet(768, [1, 0], width=16, mults=[1, 2]),
    "sd2": unet(1024, [1, 0], width=16, mults=[1, 2], linear=True),
    "sdxl": unet(2048, [0, 2], middle=2, width=16, mults=[1, 2], linear=True, label=2816),
}


def own_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What a ControlNet of a UNet has of its own."""
    into, made = 3, {}
    width = shapes["input_blocks.0.0.weight"][0]
    for at, out in enumerate((*HINTS, width)):
        made[f"input_hint_block.{2 * at}.weight"] = (out, into, 3, 3)
        made[f"input_hint_block.{2 * at}.bias"] = (out,)
        into = out
    outs = [width]
    for at in range(1, 1 + max(int(k.split(".")[1]) for k in shapes if k.startswith("input_"))):
        last = (
            shapes.get(f"input_blocks.{at}.0.op.bias")
            or shapes[f"input_blocks.{at}.0.out_layers.3.bias"]
        )
        outs.append(last[0])
    for at, out in enumerate(outs):
        made |= {f"zero_convs.{at}.0.weight": (out, out, 1, 1), f"zero_convs.{at}.0.bias": (out,)}
    return made | {
        "middle_block_out.0.weight": (outs[-1], outs[-1], 1, 1),
        "middle_block_out.0.bias": (outs[-1],),
    }


def filled(shapes: Mapping[str, tuple[int, ...]], seed: int = 0, size: float = 1.0) -> Tensors:
    """Random weights of an ordinary size, norms around one."""
    generator = torch.Generator().manual_seed(seed)
    made: Tensors = {}
    for key, shape in shapes.items():
        drawn = torch.randn(*shape, generator=generator)
        if len(shape) > 1:
            made[key] = size * drawn / math.prod(shape[1:]) ** 0.5
        else:
            made[key] = 0.1 * drawn + (0.0 if key.endswith("bias") else 1.0)
    return made


def controlnet(base: Mapping[str, Tensor], rank: int | None = None, seed: int = 1) -> Tensors:
    """A trained ControlNet of a UNet: its matrices changed, by full rank or less, and all else drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    made: Tensors = {}
    for key, weight in base.items():
        if not key.startswith(SHARED):
            continue
        flat = weight.reshape(len(weight), -1)
        change = torch.randn(flat.shape, generator=generator)
        if rank is not None and weight.ndim > 1:
            up = torch.randn(len(flat), rank, generator=generator)
            change = up @ torch.randn(rank, flat.shape[1], generator=generator)
        made[key] = weight + (0.2 * change * flat.norm() / change.norm()).reshape(weight.shape)
    return made | filled(own_shapes({key: tuple(one.shape) for key, one in base.items()}), seed)


def written(
    folder: Path,
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    base_prefix: str = "model.diffusion_model.",
    prefix: str = "",
) -> tuple[Path, Path]:
    """Both as files: the UNet and the ControlNet."""
    paths = folder / "base.safetensors", folder / "controlnet.safetensors"
    save_file(prefixed(base_prefix, base), paths[0])
    save_file(prefixed(prefix, tuned), paths[1])
    return paths


def control_lora(base: Path, controlnet: Path, output: Path, rule: str = "4", **options: object):
    """Extract it to a file; the report."""
    how = {key: options.pop(key) for key in ("exact", "seed") if key in options}
    with open_source(base) as one, open_source(controlnet) as other:
        plan = plan_control_file(one, other, rule, output=output, **options)
        return extract_control_file(plan, one, other, output, version="0.0", **how)


def product(held: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """What the factors under a name come to, in float64."""
    up, down = (held[f"{name}.{role}"].double().flatten(1) for role in ("up", "down"))
    return (up @ down).reshape(shape)
