"""Claim: a run that is killed at any moment goes on with --resume, and ends in the right bytes.

Writes three models of 48 weights to a temporary folder, and extracts a LoRA from them, or merges them into shards, once
undisturbed. Then again and again with `--resume`, and kills most of these runs at a random moment within one and
a half times what the undisturbed one took. Whenever one comes to its end, bytes are compared with those of the undisturbed run, and that
nothing else lies beside them. Hashes of inputs are taken anew each time.

    python benchmarks/resume_after_any_kill.py [--kills 50] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from machine import machine

from lorakit.lora_ops.files import SafetensorsWriter

LAYERS, SIDE = 48, 1024
COMMANDS = {
    "extract": (("extract", "--rank", "16", "--device", "cpu"), "out.safetensors"),
    "merge": (
        ("merge", "-m", "ties,density=0.3", "--shard-size", "40MB", "--base"),
        "out.safetensors.index.json",
    ),
}


def write(path: Path, seed: int) -> Path:
    """Write random fp16 weights, the same for all but a change of them for a seed above 0."""
    draw, own = (torch.Generator().manual_seed(number) for number in (0, seed))
    with SafetensorsWriter(path, header_room=1 << 16) as writer:
        for number in range(LAYERS):
            weight = 0.02 * torch.randn(SIDE, SIDE, generator=draw)
            if seed:
                weight += 0.004 * torch.randn(SIDE, SIDE, generator=own)
            writer.write(f"model.diffusion_model.blocks.{number}.attn.to_q.weight", weight.half())
        writer.finish()
    return path


def start(words: tuple[object, ...]) -> subprocess.Popen[bytes]:
    """Start a command, in a group of its own."""
    command = [sys.executable, "-m", "lorakit.cli", *map(str, words)]
    environment = {**os.environ, "LORAKIT_CACHE": "off"}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder, by its name."""
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in folder.iterdir()}


def moment(output: Path) -> str:
    """How far a run has come, by what it has left."""
    folder = output.with_name(f"{output.name}.parts")
    if not folder.exists():
        return "done" if output.exists() else "nothing there yet"
    if (folder / "publishing").exists():
        return "getting its name"
    if any("-of-" not in path.name for path in folder.glob(".*.partial")):
        return "joining"
    return "making parts"


def main() -> None:
    """Write the models, kill and resume, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(COMMANDS))
    asked = parser.parse_args()
    print(machine())
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = [write(folder / f"{one}.safetensors", one) for one in range(3)]
        for what, (words, file) in COMMANDS.items():
            if asked.only in (None, what):
                inputs = models[: 2 if what == "extract" else 3]
                killed(folder / what, (*words, *inputs), file, asked.kills, chance)


def killed(
    folder: Path, words: tuple[object, ...], file: str, kills: int, chance: random.Random
) -> None:
    """Kill a command so often, and say what came of it."""
    once, again = folder / "once", folder / "again"
    once.mkdir(parents=True)
    again.mkdir()
    before = time.perf_counter()
    if start((*words, "-o", once / file)).wait():
        sys.exit(f"{words} failed")
    length, wanted = time.perf_counter() - before, bytes_of(once)
    moments: Counter[str] = Counter()
    done = runs = 0
    while done < kills or any(again.iterdir()):
        process = start((*words, "-o", again / file, "--resume"))
        runs += 1
        try:
            status = process.wait(chance.uniform(0, 1.5 * length) if done < kills else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            moments[moment(again / file)] += 1
            if bytes_of(again) != wanted:
                continue
            status = 0
        if status or bytes_of(again) != wanted:
            sys.exit(f"after {done} kills: status {status}, {sorted(bytes_of(again))}")
        moments["finished, the bytes right"] += 1
        shutil.rmtree(again)
        again.mkdir()
    print(f"{words[0]}: {length:.1f} s undisturbed, {runs} runs, {done} killed")
    for told, count in moments.most_common():
        print(f"  {count:3} {told}")


if __name__ == "__main__":
    main()
