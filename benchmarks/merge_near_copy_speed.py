"""Claim: a weighted sum of two checkpoints, and a bake, take hardly longer than a copy of one file.

Writes fp16 checkpoints with the shapes of SDXL's UNet, its transformers cut in depth until the size
asked for is reached, to a temporary folder. Runs each job in a process of its own, in turns, with
the files in the system's cache: prints CPU seconds (user and system, with the start of Python and
torch), wall seconds, and the peak of resident memory. Beside lorakit: `cp`;
the loop that loads both files and saves the result; sd-mecha, where it can be imported. Hashes of the inputs are
remembered from the first round on, which is not counted.

    python benchmarks/merge_near_copy_speed.py [--gb 0.6] [--rounds 3] [--only NAME]...
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from machine import machine
from unets import SDXL, UNetConfig, unet_shapes

from lorakit.lora_ops.files import SafetensorsWriter

ROOT = "model.diffusion_model."
LAYERS = ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "middle_block.1.proj_in")

START = """
import sys
from pathlib import Path
a, b, c, lora, out = map(Path, sys.argv[1:6])
"""
IMPORT = START + "import torch\n"
BAKE = (
    START
    + """
from lorakit.lora_ops import Ingredient, bake_file, open_source, plan_bake_file
with open_source(a) as model, open_source(lora) as adapter:
    plan = plan_bake_file(model, [Ingredient(adapter, 0.8)], output=out, force=True)
    bake_file(plan, model, out, force=True)
"""
)
MERGE = (
    (
        START
        + """
from lorakit.lora_ops import open_source
from lorakit.lora_ops.operations.merge.file import merge_file, plan_merge_file
from lorakit.lora_ops.operations.merge.recipes.expression import parse_line
recipe = parse_line("LINE")
opened = {{name: open_source(dict(A=a, B=b, C=c)[name]) for name in recipe.files}}
plan = plan_merge_file(recipe, opened, output=out, force=True)
merge_file(plan, out, force=True)
"""
    )
    .replace("{{", "{")
    .replace("}}", "}")
)
# Of the process itself: what it inherits from the one that starts it would count in `ru_maxrss`.
PEAK = """
import pathlib
status = pathlib.Path("/proc/self/status")
print(status.read_text().split("VmHWM:")[1].split()[0] if status.exists() else 0)
"""
LOAD_ALL = (
    START
    + """
import torch
from safetensors.torch import load_file, save_file
one, other = load_file(a), load_file(b)
for key in one:
    one[key] = (one[key].float() * 0.7 + other[key].float() * 0.3).half()
save_file(one, out)
"""
)
MECHA = (
    START
    + """
import sd_mecha
recipe = sd_mecha.weighted_sum(sd_mecha.model(str(a)), sd_mecha.model(str(b)), alpha=0.3)
sd_mecha.merge(recipe, output=str(out), merge_device="cpu", merge_dtype=__import__("torch").float32)
"""
)


@dataclass(frozen=True, slots=True)
class Took:
    """What a process took."""

    cpu: float
    wall: float
    peak: float  # MB


def shapes_of(size: float) -> dict[str, tuple[int, ...]]:
    """Names and shapes of about so many GB in fp16: first the depth goes, then the width."""
    fitting = SDXL
    for depth in (10, 6, 3, 2, 1):
        fitting = replace(SDXL, depths=(0, min(2, depth), depth), middle_depth=depth)
        if numbers(fitting) * 2e-9 <= size:
            break
    while numbers(fitting) * 2e-9 > size and fitting.channels > 64:
        fitting = replace(fitting, channels=fitting.channels - 32)
    return unet_shapes(fitting)


def numbers(config: UNetConfig) -> int:
    """How many a UNet has."""
    return sum(torch.Size(shape).numel() for shape in unet_shapes(config).values())


def write_files(folder: Path, shapes: dict[str, tuple[int, ...]]) -> list[Path]:
    """Write three checkpoints of random numbers and a LoRA of two layers."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(1 << 25, generator=generator).half()
    files = [folder / f"{name}.safetensors" for name in ("a", "b", "c")]
    for file in files:
        with SafetensorsWriter(file, header_room=1 << 20, hashed=False) as writer:
            for name, shape in shapes.items():
                start = int(torch.randint(1 << 20, (1,), generator=generator))
                count = torch.Size(shape).numel()
                writer.write(ROOT + name, noise[start : start + count].reshape(shape))
            writer.finish({"format": "pt"})
    lora = folder / "lora.safetensors"
    with SafetensorsWriter(lora) as writer:
        for name in LAYERS:
            shape = shapes[f"{name}.weight"]
            writer.write(
                f"diffusion_model.{name}.lora_A.weight", noise[: 16 * shape[1]].view(16, -1)
            )
            writer.write(
                f"diffusion_model.{name}.lora_B.weight", noise[: 16 * shape[0]].view(-1, 16)
            )
        writer.finish()
    return [*files, lora]


def took(command: list[str], output: Path) -> Took | None:
    """Run a program; None where it fails."""
    started = time.perf_counter()
    if command[0] == sys.executable:
        command = [*command[:2], command[2] + PEAK, *command[3:]]
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=told, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        told.seek(0)
        errors.seek(0)
        peak, error = told.read().split()[-1:], errors.read()
    output.unlink(missing_ok=True)
    if status:
        print(f"    {error.strip().splitlines()[-1] if error.strip() else status}", file=sys.stderr)
        return None
    return Took(usage.ru_utime + usage.ru_stime, wall, int(peak[0]) * 1024 / 1e6 if peak else 0.0)


def main() -> None:
    """Write the files, and run the jobs in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gb", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        files = write_files(folder, shapes_of(arguments.gb))
        output = folder / "out.safetensors"
        places = [*map(str, files), str(output)]
        jobs = {
            "cp": ["cp", places[0], places[-1]],
            "import torch": [sys.executable, "-c", IMPORT, *places],
            "bake, two layers": [sys.executable, "-c", BAKE, *places],
            **{
                name: [sys.executable, "-c", MERGE.replace("LINE", line), *places]
                for name, line in {
                    "weighted sum": "A + 0.3*(B - A)",
                    "add difference": "A + 0.35*(B - C)",
                }.items()
            },
            "load everything": [sys.executable, "-c", LOAD_ALL, *places],
            "sd-mecha": [sys.executable, "-c", MECHA, *places],
        }
        wanted = {n: job for n, job in jobs.items() if not arguments.only or n in arguments.only}
        found: dict[str, list[Took]] = {name: [] for name in wanted}
        for _ in range(arguments.rounds + 1):  # the first warms the cache up
            for name, command in wanted.items():
                if (run := took(command, output)) is not None:
                    found[name].append(run)
        print(f"{files[0].stat().st_size / 1e9:.2f} GB a file\n")
        print("| job | CPU s | wall s, median | peak MB |\n|---|---|---|---|")
        for name, runs in found.items():
            if kept := runs[1:]:
                print(
                    f"| {name} | {min(run.cpu for run in kept):.2f} "
                    f"| {statistics.median(run.wall for run in kept):.2f} "
                    f"| {max(run.peak for run in kept):.0f} |"
                )


if __name__ == "__main__":
    main()
