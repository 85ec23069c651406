"""Claim: a conversion without arithmetic takes at most three times as long as a copy of the file.

Writes a Flux.1 LoRA with kohya's names on each large linear of all blocks to a temporary folder.
Prints the seconds for a copy (read, write, fsync, in pieces of 1 MiB), for the two SHA-256 that a
conversion takes on top of it (of the input as a whole, of the output's data: both are in its
metadata), and for `convert` to each format; and, of a file of the same size that is a hole, those
for what `info` does. The best of a few rounds, in turns, since all of them wait for the disk.

    python benchmarks/convert_near_copy_speed.py [--rank 48] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine

from lorakit.lora_ops import describe, open_source
from lorakit.lora_ops.files import SafetensorsWriter, file_sha256
from lorakit.lora_ops.operations.convert.file import convert_file

WIDTH = 3072
# Out and in, as multiples of the width, by block; and how many blocks there are.
LAYERS: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {
    "double_blocks": (
        19,
        {
            f"{stream}_{module}": size
            for stream in ("img", "txt")
            for module, size in {
                "attn_qkv": (3, 1),
                "attn_proj": (1, 1),
                "mlp_0": (4, 1),
                "mlp_2": (1, 4),
                "mod_lin": (6, 1),
            }.items()
        },
    ),
    "single_blocks": (38, {"linear1": (7, 1), "linear2": (1, 5), "modulation_lin": (3, 1)}),
}
FORMATS = ("comfy", "diffusers")


def write_lora(path: Path, rank: int) -> None:
    """Write a LoRA of random numbers in fp16."""
    noise = torch.randn(1 << 23, generator=torch.Generator().manual_seed(0)).half()
    with SafetensorsWriter(path, header_room=1 << 20) as writer:
        for blocks, (count, layers) in LAYERS.items():
            for number in range(count):
                for module, (out, into) in layers.items():
                    name = f"lora_unet_{blocks}_{number}_{module}"
                    up, down = (out * WIDTH, rank), (rank, into * WIDTH)
                    for factor, shape in (("up", up), ("down", down)):
                        size = shape[0] * shape[1]
                        writer.write(f"{name}.lora_{factor}.weight", noise[:size].reshape(shape))
                    writer.write(f"{name}.alpha", torch.tensor(float(rank)))
        writer.finish()


def copy(source: Path, output: Path) -> None:
    """Copy as a program does that wants the data on the disk when it says that it is done."""
    with source.open("rb", buffering=0) as read, output.open("wb", buffering=0) as write:
        while data := read.read(1 << 20):
            write.write(data)
        os.fsync(write.fileno())


def convert(source: Path, output: Path, format: str) -> None:
    """Convert from file to file."""
    with open_source(source) as opened:
        convert_file(opened, output, format)


def look(path: Path) -> None:
    """What `lorakit info` does before it prints."""
    with open_source(path) as opened:
        describe(opened)


def timed(work: Callable[[], object], output: Path | None = None) -> float:
    """Wall time; the output is removed."""
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    if output is not None:
        output.unlink()
    return seconds


def main() -> None:
    """Write, copy and convert."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        lora, output = folder / "lora.safetensors", folder / "output.safetensors"
        write_lora(lora, arguments.rank)
        with open_source(lora) as source:
            layers = len(source.keys()) // 3
        works: dict[str, tuple[Callable[[], object], Path | None]] = {
            "copy, fsync": (lambda: copy(lora, output), output),
            "two SHA-256": (lambda: (file_sha256(lora), file_sha256(lora)), None),
            **{
                f"convert to {format}": (
                    lambda format=format: convert(lora, output, format),
                    output,
                )
                for format in FORMATS
            },
            "info": (lambda: look(lora), None),
        }
        best = dict.fromkeys(works, float("inf"))
        for _ in range(arguments.rounds):
            for name, (work, made) in works.items():
                best[name] = min(best[name], timed(work, made))
        print(machine())
        print(f"{lora.stat().st_size / 1e6:.0f} MB, {layers} layers\n")
        print("| what | seconds | ratio to copy |")
        print("|---|---|---|")
        for name, seconds in best.items():
            print(f"| {name} | {seconds:.2f} | {seconds / best['copy, fsync']:.2f} |")


if __name__ == "__main__":
    main()
