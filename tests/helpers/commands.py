"""The command line as a user has it: commands run here or in a process of their own, and tiny files."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

import lorakit
from lorakit.cli import main

ROOT = Path(lorakit.__file__).resolve().parent
DIGITS = ROOT / "examples" / "digits"
TESTS = ROOT / "tests"
HELPERS = TESTS / "helpers"
KEYS = TESTS / "helpers" / "keys"
# Two adapters that people made, where they lie beside the checkout.
REAL = ROOT.parent / "shared/data/real_loras"
#: The installed command.
SCRIPT = Path(sysconfig.get_path("scripts")) / "lorakit"
# What would colour or widen the output; a pipe gets neither.
_LOOKS = ("FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE")
PLAIN = {name: value for name, value in os.environ.items() if name not in _LOOKS}


@dataclass(frozen=True)
class Run:
    """How a command ended."""

    status: int
    out: str
    err: str


def lorakit_here(*words: object) -> Run:
    """Run a command in this process; a bug in it is raised, not shown."""
    result = CliRunner().invoke(
        main,
        [str(word) for word in words],
        catch_exceptions=False,
        env=dict.fromkeys(_LOOKS),
        terminal_width=80,
    )
    return Run(result.exit_code, result.stdout, result.stderr)


def lorakit_there(*words: object, cwd: Path | None = None, **environment: str) -> Run:
    """Run the installed command in a process of its own."""
    return program(SCRIPT, *words, cwd=cwd, **environment)


def program(*words: object, cwd: Path | None = None, **environment: str) -> Run:
    """Run any program, with pipes for its output."""
    done = subprocess.run(
        [os.fspath(w) if isinstance(w, Path) else str(w) for w in words],
        cwd=cwd,
        env=PLAIN | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        timeout=300,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr)


def python(code: str, *words: object) -> Run:
    """Run a few lines of Python in a process of its own."""
    return program(sys.executable, "-c", code, *words)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder, hidden files too: what a command must leave as it was."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def tiny(seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """A diffusion model of a few thousand numbers, with Stable Diffusion's names."""
    generator = torch.Generator().manual_seed(seed)
    block = "model.diffusion_model.input_blocks.1.1"
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        f"{block}.norm.weight": (8,),
        f"{block}.transformer_blocks.0.attn1.to_q.weight": (8, 8),
        f"{block}.transformer_blocks.0.attn1.to_q.bias": (8,),
        f"{block}.transformer_blocks.0.attn2.to_k.weight": (8, 12),
        f"{block}.transformer_blocks.0.ff.net.2.weight": (8, 32),
    }
    return {k: scale * torch.randn(s, generator=generator) for k, s in shapes.items()}


def tiny_pair(folder: Path) -> tuple[Path, Path]:
    """Two such models as files: base.safetensors and tuned.safetensors."""
    base, change = tiny(), tiny(1, 0.1)
    save_file(base, folder / "base.safetensors")
    save_file({k: v + change[k] for k, v in base.items()}, folder / "tuned.safetensors")
    return folder / "base.safetensors", folder / "tuned.safetensors"
