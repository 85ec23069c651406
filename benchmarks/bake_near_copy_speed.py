"""Claim: baking a LoRA into an SDXL-sized checkpoint takes at most 2.5 times as long as a copy of it.

Writes an fp16 UNet and a LoRA on each of its linears and convolutions to a temporary folder. Prints
the seconds for a copy of the checkpoint, as a program copies (read, write, fsync, in pieces of
1 MiB) and as the system does (`shutil.copyfile`, which leaves the data in memory), for a bake, and the peak resident memory
of the process that bakes. The best of a few rounds of each, in turns, since both wait for the disk.

    python benchmarks/bake_near_copy_speed.py [--model sd1|sdxl] [--rank 32] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from machine import machine
from unets import SD1, SDXL, UNetConfig, targets, unet_shapes

from lorakit.lora_ops.files import SafetensorsWriter

MODELS: dict[str, UNetConfig] = {"sd1": SD1, "sdxl": SDXL}
ROOT = "model.diffusion_model."
T = TypeVar("T")

BAKE = """
import sys
from pathlib import Path
from lorakit.lora_ops import Ingredient, bake_file, open_source, plan_bake_file

checkpoint, lora, output = sys.argv[1:]
with open_source(checkpoint) as source, open_source(lora) as adapter:
    plan = plan_bake_file(source, [Ingredient(adapter, 0.8)], output=Path(output), force=True)
    print(bake_file(plan, source, Path(output), force=True).seconds)
"""


def write_files(folder: Path, config: UNetConfig, rank: int) -> tuple[Path, Path]:
    """Write a checkpoint and a LoRA of random numbers, of the sizes that trained ones have."""
    checkpoint, lora = folder / "checkpoint.safetensors", folder / "lora.safetensors"
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 25, generator=generator).half()

    def random(*shape: int, size: float) -> torch.Tensor:
        start = int(torch.randint(1 << 20, (1,), generator=generator))
        return size * noise[start : start + torch.Size(shape).numel()].reshape(shape)

    shapes = unet_shapes(config)
    with SafetensorsWriter(checkpoint, header_room=1 << 20) as writer:
        for name, shape in shapes.items():
            writer.write(ROOT + name, random(*shape, size=0.02))
        writer.finish()
    with SafetensorsWriter(lora, header_room=1 << 20) as writer:
        for name, shape in targets(shapes).items():
            key = f"diffusion_model.{name}"
            ones = [1 for _ in shape[2:]]
            writer.write(f"{key}.lora_A.weight", random(rank, *shape[1:], size=0.02))
            writer.write(f"{key}.lora_B.weight", random(shape[0], rank, *ones, size=0.02))
            writer.write(f"{key}.alpha", torch.tensor(float(rank)))
        writer.finish()
    return checkpoint, lora


def copy(source: Path, output: Path) -> None:
    """Copy as a program does that wants the data on the disk when it says that it is done."""
    with source.open("rb", buffering=0) as read, output.open("wb", buffering=0) as write:
        while data := read.read(1 << 20):
            write.write(data)
        os.fsync(write.fileno())


def bake(checkpoint: Path, lora: Path, output: Path) -> tuple[float, float]:
    """Bake in a process of its own: seconds without its start, and peak resident memory in GB."""
    command = [sys.executable, "-c", BAKE, checkpoint, lora, output]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    seconds = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("the bake failed")
    return float(seconds), usage.ru_maxrss * 1024 / 1e9


def timed(work: Callable[..., T], *paths: Path) -> tuple[float, T]:
    """Wall time, and what the work returned; its output, the last path, is removed."""
    started = time.perf_counter()
    result = work(*paths)
    seconds = time.perf_counter() - started
    paths[-1].unlink()
    return seconds, result


def main() -> None:
    """Write, copy and bake each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine())
    print("| checkpoint | file | copy, fsync | copyfile | bake | ratio to copy | peak memory |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.model or ["sdxl"]:
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            checkpoint, lora = write_files(folder, MODELS[name], arguments.rank)
            output = folder / "output.safetensors"
            rounds = [
                (
                    timed(copy, checkpoint, output),
                    timed(shutil.copyfile, checkpoint, output),
                    timed(bake, checkpoint, lora, output),
                )
                for _ in range(arguments.rounds)
            ]
            copied, system, _ = (
                min(took for took, _ in runs) for runs in zip(*rounds, strict=True)
            )
            baked = min(seconds for *_, (_, (seconds, _)) in rounds)
            peak = max(peak for *_, (_, (_, peak)) in rounds)
            print(
                f"| {name} UNet, rank {arguments.rank} | {checkpoint.stat().st_size / 1e9:.1f} GB | "
                f"{copied:.1f} s | {system:.1f} s | {baked:.1f} s | {baked / copied:.1f} | "
                f"{peak:.2f} GB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
