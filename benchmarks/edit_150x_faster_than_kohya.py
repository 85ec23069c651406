"""Claim: resizing and adding LoRAs, 150 times quicker than kohya's way, at the optimal error.

The 722 attention and feed-forward layers of a LoRA for SDXL's UNet. Resize: rank 128 to 32. Add:
three LoRAs of rank 32 to one of rank 32, and to an exact one of rank 96, from file to file. Peers
and ours run on the same factors in one process; a peer with full SVDs is timed once for each of
the shapes, and the times are multiplied and summed.

    python benchmarks/edit_150x_faster_than_kohya.py [--sample 0.1] [--skip-slow]
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine
from peers import full_svd, lowrank_2, qr_of_factors
from safetensors.torch import load_file
from torch import Tensor
from unets import SDXL, targets, unet_shapes

from lorakit.lora_ops import add, decode, open_source
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.adapters.strengths.ingredient import Ingredient
from lorakit.lora_ops.files import MemoryFile, SafetensorsWriter
from lorakit.lora_ops.linalg import distance, factored_svd, thinned
from lorakit.lora_ops.operations.add.file import add_files
from lorakit.lora_ops.run.workers import ordered_map

RANK = 32
Factors = tuple[Tensor, Tensor]


def layers() -> dict[str, tuple[int, int]]:
    """Name and shape of the linears that kohya's SDXL LoRAs hold."""
    shapes = targets(unet_shapes(SDXL))
    return {
        name: (shape[0], shape[1])
        for name, shape in shapes.items()
        if "transformer_blocks" in name or name.endswith(("proj_in", "proj_out"))
    }


def factors(shape: tuple[int, int], rank: int, seed: int) -> Factors:
    """Up and down of a change whose singular values fall slowly."""
    generator = torch.Generator().manual_seed(seed)
    fall = torch.arange(1, rank + 1).pow(-0.5)
    up = 0.02 * torch.randn(shape[0], rank, generator=generator) * fall
    return up.half().float(), torch.randn(rank, shape[1], generator=generator).half().float()


def ours(pair: Factors) -> Factors:
    """What resizing and adding do to one layer."""
    return factored_svd(*thinned(*pair)).factors(RANK)


def dense(truncate: Callable[[Tensor, int], Factors]) -> Callable[[Factors], Factors]:
    """Multiply the factors out, then decompose."""
    return lambda pair: truncate(pair[0] @ pair[1], RANK)


# Name, function, and whether it is too slow to run on every layer.
WAYS: dict[str, tuple[Callable[[Factors], Factors], bool]] = {
    "dense product, full SVD (kohya)": (dense(full_svd), True),
    "dense product, svd_lowrank (kohya 2026)": (dense(lowrank_2), False),
    "QR of both factors (resize_lora)": (qr_of_factors(RANK), False),
    "lorakit": (ours, False),
}


def compare(counts: Counter[tuple[int, int]], ranks: list[int], skip_slow: bool) -> None:
    """Time every way of bringing factors of these ranks, side by side, to one of RANK."""
    totals: Counter[str] = Counter()
    worst: dict[str, float] = {}
    for index, (shape, count) in enumerate(sorted(counts.items())):
        parts = [factors(shape, rank, index + 100 * i) for i, rank in enumerate(ranks)]
        pair = torch.cat([up for up, _ in parts], dim=1), torch.cat([down for _, down in parts])
        s = factored_svd(*thinned(pair[0].double(), pair[1].double())).s
        best = float(s[RANK:].square().sum().sqrt())
        for name, (way, slow) in WAYS.items():
            if slow and skip_slow:
                continue
            torch.manual_seed(0)
            todo = [pair] * (1 if slow else count)
            started = time.perf_counter()
            if name == "lorakit":
                results = list(ordered_map(way, todo, torch.get_num_threads()))
            else:
                results = [way(one) for one in todo]
            totals[name] += (time.perf_counter() - started) * count / len(todo)
            error = float(distance(*pair, *results[0]))
            worst[name] = max(worst.get(name, 0.0), error / best - 1)
        print(f"  {shape[0]}x{shape[1]} x{count}: {totals['lorakit']:.1f} s so far", flush=True)
    print()
    print("| way | seconds | times lorakit's | worst excess error |")
    print("|---|---|---|---|")
    for name, seconds in totals.most_common():
        print(f"| {name} | {seconds:.1f} | {seconds / totals['lorakit']:.1f} | {worst[name]:.1e} |")
    print()


def concatenate(folder: Path) -> None:
    """Time the exact sum of three LoRAs: of the tensors, as above, and of the files, whole."""
    paths = [folder / f"{name}.safetensors" for name in "abc"]
    for index, path in enumerate(paths):
        with SafetensorsWriter(path, header_room=1 << 18) as writer:
            for i, (name, shape) in enumerate(layers().items()):
                up, down = factors(shape, RANK, 1000 * index + i)
                writer.write(f"diffusion_model.{name}.lora_B.weight", up.half())
                writer.write(f"diffusion_model.{name}.lora_A.weight", down.half())
                writer.write(f"diffusion_model.{name}.alpha", torch.tensor(float(RANK)))
            writer.finish()
    for strengths in ((1.0, 1.0, 1.0), (0.7, -0.3, 1.0)):
        opened = [open_source(path) for path in paths]
        given = [Ingredient(source, s) for source, s in zip(opened, strengths, strict=True)]
        held = [MemoryFile(path.name, load_file(path)) for path in paths]
        terms = [
            Term(adapter := decode(file), one.strengths(adapter.layers), file.name)
            for file, one in zip(held, given, strict=True)
        ]
        started = time.perf_counter()
        add(terms)
        in_memory = time.perf_counter() - started
        report = add_files(
            given,
            folder / f"{strengths[0]}.safetensors",
        )
        for source in opened:
            source.close()
        size = report.size / 1e6
        print(
            f"| strengths {strengths} | {in_memory:.1f} s | {report.seconds:.1f} s | {size:.0f} MB "
            f"| {report.error:.1e} |"
        )


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=float, default=1.0, help="share of the layers, 0-1")
    parser.add_argument("--skip-slow", action="store_true", help="leave out the full SVDs")
    arguments = parser.parse_args()
    counts = Counter(layers().values())
    counts = Counter({s: math.ceil(n * arguments.sample) for s, n in counts.items()})
    print(machine())
    print(f"{sum(counts.values())} layers of {len(counts)} shapes")
    print(f"\nresize, rank 128 to {RANK}")
    compare(counts, [128], arguments.skip_slow)
    print(f"add, three of rank {RANK} to one of rank {RANK}")
    compare(counts, [RANK] * 3, arguments.skip_slow)
    print("add, exactly: of the tensors; and from file to file, provenance hashes included")
    print("\n| inputs | tensors | files | size | error |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        concatenate(Path(folder))


if __name__ == "__main__":
    main()
