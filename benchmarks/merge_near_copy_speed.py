"""Claim: a weighted sum takes 1.5 times the CPU seconds of the least that it is, others three times as many or more.

Writes three fp16 checkpoints with the shapes of SDXL's UNet, its transformers cut in depth until the
size asked for is reached, to a temporary folder. Runs each job in a process of its own, in turns, with
the files in the system's cache, and prints CPU seconds (user and system, with the start of Python and
torch), wall seconds, and the peak of resident memory. Hashes of the inputs are remembered from the
first round on, which is not counted. Beside the command `lorakit`:

- `cp`, and `cp` with `sync`: lorakit says that it is done when the file is on the disk;
- the least that a merge is: two threads that read a MiB of both files, `torch.lerp`, and write it;
- the loop that loads both files and saves the result;
- with `--peers PYTHON` sd-mecha and mergekit-pytorch, in the environment that has them.

    python benchmarks/merge_near_copy_speed.py [--gb 0.6] [--rounds 3] [--peers PYTHON] [--only NAME]...
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from machine import machine
from unets import SDXL, UNetConfig, unet_shapes

from lorakit.lora_ops.files import SafetensorsWriter

ROOT = "model.diffusion_model."
LAYERS = ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "middle_block.1.proj_in")

# Told at the end by the process itself: what it inherits would count in `ru_maxrss`.
START = """
import atexit, pathlib, sys
status = pathlib.Path("/proc/self/status")
peak = lambda: print(status.read_text().split("VmHWM:")[1].split()[0] if status.exists() else 0)
atexit.register(peak)
"""
FILES = START + "a, b, c, lora, out = sys.argv[1:6]\n"
LORAKIT = START + "from lorakit.cli import main\nmain()"
IMPORT = START + "import torch"
LEAST = (
    FILES
    + """
import json, os, threading, torch
PART = 1 << 20
def opened(path):
    file = os.open(path, os.O_RDONLY)
    size = int.from_bytes(os.pread(file, 8, 0), "little")
    return file, 8 + size, json.loads(os.pread(file, size, 8))
(one, one_data, header), (other, other_data, others) = opened(a), opened(b)
header.pop("__metadata__", None)
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
made, made_data = os.open(out, os.O_WRONLY | os.O_CREAT), 8 + len(text)
os.pwrite(made, len(text).to_bytes(8, "little") + text, 0)
parts = []
for key, entry in header.items():
    first, last = entry["data_offsets"]
    away = others[key]["data_offsets"][0] - first
    parts += [(at, away, min(PART, last - at)) for at in range(first, last, PART)]
parts, turn = iter(parts), threading.Lock()
def work():
    x, y, z = (torch.empty(PART // 2, dtype=torch.float16) for _ in range(3))
    p, q, r = (one.view(torch.uint8).numpy().data for one in (x, y, z))
    while True:
        with turn:
            part = next(parts, None)
        if part is None:
            return
        at, away, size = part
        os.preadv(one, [p[:size]], one_data + at)
        os.preadv(other, [q[:size]], other_data + at + away)
        torch.lerp(x[: size // 2], y[: size // 2], 0.3, out=z[: size // 2])
        os.pwrite(made, r[:size], made_data + at)
torch.set_num_threads(1)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
)
LOAD_ALL = (
    FILES
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
    FILES
    + """
import sd_mecha, torch
from sd_mecha.extensions.merge_methods import resolve
a, b, c = map(sd_mecha.model, (a, b, c))
less, ties, more = map(resolve, ("subtract", "ties_sum_extended", "add_difference"))
sd_mecha.merge(RECIPE, output=out, merge_device="cpu", merge_dtype=torch.float32)
"""
)
MERGEKIT = (
    FILES
    + """
from mergekit.scripts.merge_raw_pytorch import main
recipe = pathlib.Path(out).with_suffix(".yaml")
recipe.write_text("RECIPE".replace("$A", a).replace("$B", b).replace("$C", c))
main([str(recipe), str(pathlib.Path(out).with_suffix("")), "--quiet"])
"""
)
#: What each program is told for a job.
LINES = {
    "weighted sum": ["A + 0.3*(B - A)", "A={a}", "B={b}"],
    "add difference": ["A + 0.35*(B - C)", "A={a}", "B={b}", "C={c}"],
    "slerp": ["{a}:0.7", "{b}:0.3", "--method", "slerp"],
    "DARE": ["{b}", "{c}", "--base", "{a}", "--method", "dare,density=0.2"],
    "TIES": ["{b}", "{c}", "--base", "{a}", "--method", "ties,density=0.2"],
}
MECHA_RECIPES = {
    "weighted sum": "sd_mecha.weighted_sum(a, b, alpha=0.3)",
    "add difference": "sd_mecha.add_difference(a, b, c, alpha=0.35)",
    "slerp": "sd_mecha.slerp(a, b, alpha=0.3)",
    "DARE": "sd_mecha.dropout(a, b, c, probability=0.8, alpha=1.0, seed=1)",
    "TIES": "more(a, ties(less(b, a), less(c, a), k=0.2), alpha=1.0)",
}
_MODEL = "{{model: ${}, parameters: {{weight: {}}}}}"
_TWO = f"base_model: $A, models: [{_MODEL.format('B', 1)}, {_MODEL.format('C', 1)}]"
MERGEKIT_RECIPES = {
    "weighted sum": f"merge_method: linear, models: [{_MODEL.format('A', 0.7)}, {_MODEL.format('B', 0.3)}]",
    "add difference": "merge_method: task_arithmetic, base_model: $A, "
    f"models: [{_MODEL.format('B', 0.35)}, {_MODEL.format('C', -0.35)}]",
    "slerp": "merge_method: slerp, base_model: $A, models: [{model: $B}], parameters: {t: 0.3}",
    "DARE": f"merge_method: dare_linear, {_TWO}, parameters: {{density: 0.2}}",
    "TIES": f"merge_method: ties, {_TWO}, parameters: {{density: 0.2, normalize: true}}",
}


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
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=told, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        told.seek(0)
        errors.seek(0)
        peak, error = told.read().split()[-1:], errors.read()
    output.unlink(missing_ok=True)
    shutil.rmtree(output.with_suffix(""), ignore_errors=True)  # mergekit's
    if status:
        print(f"    {error.strip().splitlines()[-1] if error.strip() else status}", file=sys.stderr)
        return None
    return Took(usage.ru_utime + usage.ru_stime, wall, int(peak[0]) * 1024 / 1e6 if peak else 0.0)


def jobs_of(files: Sequence[Path], output: Path, peers: str | None) -> dict[str, list[str]]:
    """The programs and what they are given, by name."""
    places = [*map(str, files), str(output)]
    names = dict(zip("abc", places, strict=False))
    lorakit = [sys.executable, "-c", LORAKIT]
    jobs = {
        "cp": ["cp", places[0], places[-1]],
        "cp, sync": ["sh", "-c", f"cp {places[0]} {places[-1]} && sync {places[-1]}"],
        "import torch": [sys.executable, "-c", IMPORT],
        "the least: weighted sum": [sys.executable, "-c", LEAST, *places],
        "lorakit: bake, two layers": [
            *lorakit,
            "bake",
            places[0],
            f"{places[3]}:0.8",
            "-o",
            places[-1],
        ],
    }
    for name, line in LINES.items():
        words = [word.format(**names) for word in line]
        jobs[f"lorakit: {name}"] = [*lorakit, "merge", *words, "-o", places[-1]]
    jobs["load everything: weighted sum"] = [sys.executable, "-c", LOAD_ALL, *places]
    for name in LINES if peers else ():
        for peer, script, recipes in (
            ("sd-mecha", MECHA, MECHA_RECIPES),
            ("mergekit-pytorch", MERGEKIT, MERGEKIT_RECIPES),
        ):
            recipe = recipes[name] if peer == "sd-mecha" else f"{{dtype: float16, {recipes[name]}}}"
            told = script.replace("RECIPE", recipe)
            jobs[f"{peer}: {name}"] = [peers or "", "-c", told, *places]
    return jobs


def main() -> None:
    """Write the files, and run the jobs in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gb", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peers", metavar="PYTHON", help="of the environment with the other programs"
    )
    parser.add_argument("--only", action="append", help="jobs with this in their names")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        files = write_files(folder, shapes_of(arguments.gb))
        output = folder / "out.safetensors"
        wanted = {
            name: job
            for name, job in jobs_of(files, output, arguments.peers).items()
            if not arguments.only or any(one in name for one in arguments.only)
        }
        found: dict[str, list[Took]] = {name: [] for name in wanted}
        for _ in range(arguments.rounds + 1):  # the first warms the cache up
            for name, command in wanted.items():
                if (run := took(command, output)) is not None:
                    found[name].append(run)
                    print(f"    {name}: {run.cpu:.2f} {run.wall:.2f}", file=sys.stderr, flush=True)
        print(f"{files[0].stat().st_size / 1e9:.2f} GB a file\n")
        print("| job | CPU s | wall s, median | peak MB |\n|---|---|---|---|")
        for name, runs in found.items():
            if kept := runs[1:] or runs:
                print(
                    f"| {name} | {min(run.cpu for run in kept):.2f} "
                    f"| {statistics.median(run.wall for run in kept):.2f} "
                    f"| {max(run.peak for run in kept):.0f} |"
                )


if __name__ == "__main__":
    main()
