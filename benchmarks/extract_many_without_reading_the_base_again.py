"""Claim: one more tuned checkpoint costs less than a single extraction, and hardly any memory.

Writes a base with every fifth weight of SDXL's UNet, in fp16 and in nvfp4, and three fp16 checkpoints that came
of it, to a temporary folder. Runs the installed command on the base and one, two and three of them. Prints seconds of
processor time, which other work on the machine does not change much, hashes of all inputs included, and
peak resident memory.

    python benchmarks/extract_many_without_reading_the_base_again.py [--rank 64] [--every 5]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from machine import machine
from unets import SDXL, unet_shapes

from lorakit.lora_ops import open_source, plan_requantise_file, requantise_file
from lorakit.lora_ops.files import SafetensorsWriter

COUNT = 3


def write(path: Path, every: int, seed: int) -> Path:
    """Write random fp16 weights, and for a seed above 0 a change of them whose singular values fall slowly."""
    draw, own = (torch.Generator().manual_seed(number) for number in (0, seed))
    noise = (0.02 * torch.randn(1 << 25, generator=draw)).half()
    with SafetensorsWriter(path, header_room=1 << 20) as writer:
        for name, shape in list(unet_shapes(SDXL).items())[::every]:
            start = int(torch.randint(1 << 20, (1,), generator=draw))
            size = torch.Size(shape).numel()
            weight = noise[start : start + size].reshape(shape)
            if seed and len(shape) > 1:
                fall = torch.arange(1, min(192, shape[0]) + 1).pow(-0.4)
                up = torch.randn(shape[0], len(fall), generator=own) * fall
                change = (up @ torch.randn(len(fall), size // shape[0], generator=own)).view(shape)
                weight = weight + (change * (0.002 / change.std())).half()
            writer.write(f"model.diffusion_model.{name}", weight)
        writer.finish()
    return path


def run(*words: object) -> tuple[float, float]:
    """Seconds of processor time and peak resident memory in GB of a command."""
    command = [sys.executable, "-m", "lorakit.cli", "extract", *map(str, words)]
    environment = {**os.environ, "LORAKIT_CACHE": "off"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Write, run and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--rank", default="64")
    asked = parser.parse_args()
    print(machine())
    print("| base | 1 | 2 | 3 | one more, of the first | peak memory with 1, 2, 3 |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder, every = Path(name), asked.every
        tuned = [write(folder / f"{n}.safetensors", every, n) for n in range(1, COUNT + 1)]
        plain = write(folder / "base.safetensors", every, 0)
        with open_source(plain) as source:
            output = folder / "quantised.safetensors"
            requantise_file(plan_requantise_file(source, "nvfp4", output=output), output)
        for title, base in (("fp16", plain), ("nvfp4", output)):
            single = run(
                base, tuned[0], "-o", folder / f"{title}.safetensors", "--rank", asked.rank
            )
            spent = [single]
            for count in range(2, COUNT + 1):
                where = folder / f"{title}{count}"
                spent.append(run(base, *tuned[:count], "-o", where, "--rank", asked.rank))
            seconds, memory = zip(*spent, strict=True)
            more = (seconds[-1] - seconds[0]) / (COUNT - 1)
            told = ", ".join(f"{one:.2f} GB" for one in memory)
            print(
                f"| {title} | {' | '.join(f'{one:.1f} s' for one in seconds)} | "
                f"{more / seconds[0]:.2f} | {told} |"
            )


if __name__ == "__main__":
    main()
