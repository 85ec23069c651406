"""Claim: a whole extraction stays under 1.5 GB of memory, whatever the size of the checkpoint.

Writes fp16 pairs of the size of SD1.5's and SDXL's UNets to a temporary folder, runs the installed
command on them, and prints wall time, peak resident memory (torch's import and mapped pages
included) and the ratio to reading both files once.

    python benchmarks/extract_in_bounded_memory.py [--model sd1|sdxl] [--rank 64]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import machine
from unets import SD1, SDXL, UNetConfig, unet_shapes

from lorakit.lora_ops.files import SafetensorsWriter

MODELS: dict[str, UNetConfig] = {"sd1": SD1, "sdxl": SDXL}


def write_pair(folder: Path, config: UNetConfig) -> tuple[Path, Path]:
    """Write base and tuned: random fp16 weights and a change of slowly falling singular values."""
    paths = folder / "base.safetensors", folder / "tuned.safetensors"
    generator = torch.Generator().manual_seed(0)
    noise = (0.02 * torch.randn(1 << 25, generator=generator)).half()
    with (
        SafetensorsWriter(paths[0], header_room=1 << 20) as base,
        SafetensorsWriter(paths[1], header_room=1 << 20) as tuned,
    ):
        for name, shape in unet_shapes(config).items():
            key = f"model.diffusion_model.{name}"
            start = int(torch.randint(1 << 20, (1,), generator=generator))
            size = torch.Size(shape).numel()
            weight = noise[start : start + size].reshape(shape)
            base.write(key, weight)
            if len(shape) < 2:
                tuned.write(key, weight)
                continue
            rank = min(192, shape[0])
            fall = torch.arange(1, rank + 1).pow(-0.4)
            up = torch.randn(shape[0], rank, generator=generator) * fall
            down = torch.randn(rank, size // shape[0], generator=generator)
            change = (up @ down).reshape(shape)
            tuned.write(key, weight + (change * (0.002 / change.std())).half())
        base.finish()
        tuned.finish()
    return paths


def reading(paths: tuple[Path, ...]) -> float:
    """Seconds to read the files once, in pieces of 16 MB."""
    started = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
    return time.perf_counter() - started


def run(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident memory in GB of a finished process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Write, run and measure each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--rank", default="64")
    arguments = parser.parse_args()
    print(machine())
    print("| checkpoint | files | reading both | extraction | ratio | peak memory |")
    print("|---|---|---|---|---|---|")
    for name in arguments.model or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_pair(Path(folder), MODELS[name])
            size = sum(path.stat().st_size for path in paths) / 1e9
            read = reading(paths)
            output = Path(folder) / "lora.safetensors"
            command = [str(Path(sys.executable).with_name("lorakit")), "extract"]
            command += [*map(str, paths), "-o", str(output), "--rank", arguments.rank]
            seconds, peak = run(command)
            print(
                f"| {name} UNet, rank {arguments.rank} | {size:.1f} GB | {read:.1f} s | "
                f"{seconds:.1f} s | {seconds / read:.1f} | {peak:.2f} GB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
