"""Claim: what is done in parts, or can be resumed, costs little more than one run.

Writes fp16 models of a size to a temporary folder. Extracts a LoRA of rank 32 from two of them, and merges two by shares,
into shards: in one run; in eight parts, one after another, and `finish`; and with `--resume`. Prints seconds of processor
time and of wall time, what they are to one run, peak resident memory of the largest process, and the most bytes on disk
beside the inputs. Hashes of inputs are taken anew each time. What a process takes to start is told by itself.

    python benchmarks/parts_near_one_run.py [--gb 1] [--parts 8]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import machine

from lorakit.lora_ops.files import SafetensorsWriter

SIDE = 2560


@dataclass
class Cost:
    """What some processes took: seconds, bytes."""

    cpu: float = 0.0
    wall: float = 0.0
    memory: int = 0
    disk: int = 0


def write(path: Path, gb: float, seed: int) -> Path:
    """Write random fp16 weights, the same for all but a change of them for a seed above 0."""
    draw, own = (torch.Generator().manual_seed(number) for number in (0, seed))
    noise = 0.02 * torch.randn(2 * SIDE, SIDE, generator=draw)
    change = 0.002 * torch.randn(SIDE, 48, generator=own) @ torch.randn(48, SIDE, generator=own)
    with SafetensorsWriter(path, header_room=1 << 16) as writer:
        for number in range(round(gb * 1e9 / (2 * SIDE * SIDE))):
            weight = noise[number : number + SIDE]
            weight = weight + change.roll(number, 0) / 7 if seed else weight
            writer.write(f"model.diffusion_model.blocks.{number}.attn.to_q.weight", weight.half())
        writer.finish()
    return path


def run(cost: Cost, folder: Path, *words: object) -> None:
    """Run a command, and add what it took."""
    command = [sys.executable, "-m", "lorakit.cli", *map(str, words)]
    before = time.perf_counter()
    environment = {**os.environ, "LORAKIT_CACHE": "off"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    cost.wall += time.perf_counter() - before
    cost.cpu += usage.ru_utime + usage.ru_stime
    cost.memory = max(cost.memory, usage.ru_maxrss * 1024)
    cost.disk = max(
        cost.disk, sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
    )


def main() -> None:
    """Write the models, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--parts", type=int, default=8)
    asked = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, tuned = (write(folder / f"{one}.safetensors", asked.gb, one) for one in (0, 1))
        start = Cost()
        run(
            start,
            folder / "none",
            "extract",
            base,
            tuned,
            "-o",
            folder / "x.safetensors",
            "--dry-run",
        )
        print(f"a process that does nothing: {start.cpu:.1f} s of processor time")
        commands = {
            "extract": (("extract", base, tuned, "-r", "32", "--device", "cpu"), "out.safetensors"),
            "merge": (("merge", base, tuned), "out.safetensors.index.json"),
        }
        for what, (words, file) in commands.items():
            measure(folder / what, words, file, what, asked.parts)


def measure(folder: Path, words: tuple[object, ...], file: str, what: str, parts: int) -> None:
    """Run a command in all ways, and print what each took."""
    costs = {way: Cost() for way in ("one run", f"{parts} parts and finish", "--resume")}
    for number, cost in enumerate(costs.values()):
        folder.mkdir()
        output = ("-o", folder / file)
        if number == 0:
            run(cost, folder, *words, *output)
        elif number == 1:
            for part in range(1, parts + 1):
                run(cost, folder, *words, *output, "--part", f"{part}/{parts}")
            run(cost, folder, "finish", folder / file)
        else:
            run(cost, folder, *words, *output, "--resume")
        shutil.rmtree(folder)
    one = costs["one run"]
    for way, cost in costs.items():
        print(
            f"{what}, {way}: {cost.cpu:.1f} s ({cost.cpu / one.cpu:.2f}), {cost.wall:.1f} s of wall time "
            f"({cost.wall / one.wall:.2f}), {cost.memory / 1e9:.2f} GB, {cost.disk / 1e9:.2f} GB on disk"
        )


if __name__ == "__main__":
    main()
