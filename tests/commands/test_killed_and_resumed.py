"""Runs in parts that are killed, stopped or made twice at once: they go on, and end in the right bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import PLAIN, SCRIPT, contents
from safetensors.torch import save_file

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

LAYERS, SIDE = 20, 512
COMMANDS = {
    "out.safetensors": ("extract", "--exact", "--device", "cpu"),
    "out.safetensors.index.json": (
        *("merge", "-m", "smooth_add", "--shard-size", "3MB"),
        *("--base", "base.safetensors", "base.safetensors"),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints that take a second, and what one run makes of them."""
    folder = tmp_path_factory.mktemp("pair")
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"model.diffusion_model.blocks.{i}.attn.to_q.weight": torch.randn(
            SIDE, SIDE, generator=draw
        ).half()
        for i in range(LAYERS)
    }
    save_file(tensors, folder / "base.safetensors")
    save_file({k: v.roll(1, 0) for k, v in tensors.items()}, folder / "tuned.safetensors")
    for name in COMMANDS:
        (folder / f"once {name}").mkdir()
        assert ended(run(folder, folder / f"once {name}" / name))[0] == 0
    return folder


def run(folder: Path, output: Path, *words: str) -> subprocess.Popen[str]:
    """Start a command."""
    command = COMMANDS[output.name]
    files = (
        ("base.safetensors", "tuned.safetensors")
        if command[0] == "extract"
        else ("tuned.safetensors",)
    )
    return subprocess.Popen(
        [SCRIPT, *command, *files, "-o", output, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=PLAIN,
        preexec_fn=heeds_signals,
    )


def heeds_signals() -> None:
    """What a parent ignores its children ignore: started in the background, or by nohup."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_DFL)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end of a command: status, stdout, stderr."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def until(process: subprocess.Popen[str], is_so: Callable[[], bool]) -> None:
    """Wait for something that a running command does."""
    limit = time.monotonic() + 120
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_six_times_the_bytes_are_right(name: str, folder: Path, tmp_path: Path) -> None:
    """Each time after some more parts, or while they are joined."""
    output, parts = tmp_path / name, tmp_path / f"{name}.parts"
    chance = random.Random(name)
    for kill in range(6):
        process = run(folder, output, "--resume")
        there = len(list(parts.glob("0*.json"))) if kill < 5 else -1
        if kill == 5:  # as the result gets its names
            until(process, (parts / "publishing").exists)
        else:
            until(process, lambda there=there: len(list(parts.glob("0*.json"))) > there)
            time.sleep(chance.uniform(0, 0.05))
        process.kill()
        ended(process)
        if not parts.exists():
            assert contents(tmp_path) == contents(folder / f"once {name}")
            return
    status, _, err = ended(run(folder, output, "--resume"))
    assert status == 0, err
    assert contents(tmp_path) == contents(folder / f"once {name}")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_what_can_be_taken_up_again(how, folder: Path, tmp_path: Path) -> None:
    output, parts = tmp_path / "out.safetensors", tmp_path / "out.safetensors.parts"
    process = run(folder, output, "--resume")
    until(process, lambda: len(list(parts.glob("0*.json"))) > 2)
    process.send_signal(how)
    status, out, err = ended(process)
    assert (status, out, err.split()) == (128 + how, "", ["Aborted!"])
    assert not list(parts.glob(".*.partial"))
    made = {path: path.stat().st_mtime_ns for path in parts.glob("0*")}
    assert made
    assert not output.exists()
    if how is signal.SIGTERM:  # what was there is as it was
        process = run(folder, output, "--resume")
        until(process, lambda: len(list(parts.glob("0*.json"))) > len(made) // 2)
        process.kill()
        ended(process)
        assert {path: path.stat().st_mtime_ns for path in made} == made
    assert ended(run(folder, output, "--resume"))[0] == 0
    assert contents(tmp_path) == contents(folder / "once out.safetensors")


def test_two_processes_at_each_part_at_once(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    both = [run(folder, output, "--part", f"{i}/2") for i in (1, 2, 1, 2)]
    assert [(status, err) for status, _, err in map(ended, both)] == [(0, "")] * 4
    made = subprocess.run([SCRIPT, "finish", output], capture_output=True, text=True, env=PLAIN)
    assert made.returncode == 0, made.stderr
    assert contents(tmp_path) == contents(folder / "once out.safetensors")
