"""Claim: a Control-LoRA of rank 64 takes five or six times as long as reading and hashing the files that it is made of.

Writes fp16 files in the shapes of SD 1.5's UNet and of a ControlNet of it, whose change has singular values that fall slowly, to a
temporary folder (2.5 GB). Prints seconds of processor time of this process, which other work on the machine does not
change much, and its peak memory: for reading and hashing both, and for the Control-LoRA of them, hashes included.

    python benchmarks/control_lora_in_seconds.py [--rank 64 128]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from machine import machine
from unets import SD1, Shapes, unet_shapes

os.environ["LORAKIT_CACHE"] = "off"  # each run hashes anew

from lorakit.lora_ops import (
    extract_control_file,
    open_source,
    plan_control_file,
)
from lorakit.lora_ops.files import SafetensorsWriter

BLOCK = 1 << 24
SHARED = ("time_embed.", "input_blocks.", "middle_block.")
# Of the ControlNet alone: what brings an image to the size of a latent, and a convolution behind each block.
HINTS = (3, 16, 16, 32, 32, 96, 96, 256, 320)
WIDTHS = (*(320,) * 4, *(640,) * 3, *(1280,) * 5)


def own_shapes() -> Shapes:
    """What a ControlNet of SD 1.5 has of its own."""
    sizes = {f"zero_convs.{at}.0": (width, width, 1, 1) for at, width in enumerate(WIDTHS)}
    for at, (into, out) in enumerate(pairwise(HINTS)):
        sizes[f"input_hint_block.{2 * at}"] = (out, into, 3, 3)
    sizes["middle_block_out.0"] = (1280, 1280, 1, 1)
    return {
        name: part
        for module, shape in sizes.items()
        for name, part in ((f"{module}.weight", shape), (f"{module}.bias", shape[:1]))
    }


def write(path: Path, front: str, shapes: Shapes, changes: bool) -> None:
    """Write random fp16 weights, the same for the same shapes, and a change of them if that is asked for."""
    draw, own = (torch.Generator().manual_seed(number) for number in (0, 1))
    noise = (0.02 * torch.randn(1 << 25, generator=draw)).half()
    with SafetensorsWriter(path, header_room=1 << 20) as writer:
        for name, shape in shapes.items():
            size = torch.Size(shape).numel()
            start = hash_of(name) % (len(noise) - size)
            weight = noise[start : start + size].reshape(shape)
            if changes and len(shape) > 1:
                fall = torch.arange(1, min(192, shape[0]) + 1).pow(-0.4)
                up = torch.randn(shape[0], len(fall), generator=own) * fall
                change = (up @ torch.randn(len(fall), size // shape[0], generator=own)).view(shape)
                weight = weight + (change * (0.002 / change.std())).half()
            writer.write(front + name, weight)
        writer.finish()


def hash_of(name: str) -> int:
    """A number that a name always has."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def read(paths: list[Path]) -> None:
    """Read and hash files."""
    for path in paths:
        found = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                found.update(block)


def seconds(task: Callable[[], object]) -> float:
    """Processor time of a task."""
    started = time.process_time()
    task()
    return time.process_time() - started


def extracted(base: Path, controlnet: Path, output: Path, rank: int) -> None:
    """Write a Control-LoRA."""
    with open_source(base) as one, open_source(controlnet) as other:
        plan = plan_control_file(one, other, rank, output=output)
        extract_control_file(plan, one, other, output)


def main() -> None:
    """Write, run and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, nargs="+", default=[64, 128])
    asked = parser.parse_args()
    print(machine())
    print("| what | seconds | times reading and hashing | size |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / "base.safetensors", folder / "controlnet.safetensors"]
        shapes = unet_shapes(SD1)
        shared = {name: shape for name, shape in shapes.items() if name.startswith(SHARED)}
        write(paths[0], "model.diffusion_model.", shapes, changes=False)
        write(paths[1], "control_model.", shared | own_shapes(), changes=True)
        once = seconds(lambda: read(paths))
        both = sum(path.stat().st_size for path in paths) / 1e9
        print(f"| reading and hashing both | {once:.1f} | 1.0 | {both:.2f} GB |")
        for rank in asked.rank:
            out = folder / f"{rank}.safetensors"
            spent = seconds(lambda: extracted(*paths, out, rank))  # noqa: B023
            size = out.stat().st_size / 1e9
            print(
                f"| Control-LoRA, rank {rank} | {spent:.1f} | {spent / once:.1f} | {size:.2f} GB |"
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"\npeak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
