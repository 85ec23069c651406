"""An extraction and a merge that take a while, and their bytes from a run at once."""

from __future__ import annotations

from pathlib import Path

import torch
from commands import program
from safetensors.torch import save_file

LAYERS, SIDE = 12, 640
NAME = "model.diffusion_model.middle_block.1.transformer_blocks.{}.attn1.to_q.weight"
#: By what each is called, from the folder that holds the files.
SIDES = ("base.safetensors", "tuned.safetensors")
SLOW: dict[str, tuple[str, ...]] = {
    "extract": ("extract", *SIDES, "--exact"),
    "merge": ("merge", "--base", "base.safetensors", "-m", "smooth_add", *SIDES),
}


def slow_files(folder: Path) -> None:
    """Write base.safetensors and tuned.safetensors."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        NAME.format(i): torch.randn(SIDE, SIDE, generator=generator).half() for i in range(LAYERS)
    }
    save_file(tensors, folder / "base.safetensors")
    save_file({k: v.roll(1, 0) for k, v in tensors.items()}, folder / "tuned.safetensors")


def at_once(script: Path, folder: Path, command: str) -> bytes:
    """What one run of a command writes, into `once/out.safetensors`; it is made the first time."""
    output = folder / "once" / f"{command}" / "out.safetensors"
    if not output.exists():
        output.parent.mkdir(parents=True)
        done = program(script, *SLOW[command], "-o", output, cwd=folder)
        assert done.status == 0, done.err
    return output.read_bytes()


def manifests(output: Path) -> dict[str, int]:
    """The parts that are there, with the times at which they were made."""
    folder = output.with_name(f"{output.name}.parts")
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*-of-*.json")}
