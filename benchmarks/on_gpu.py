"""Claim: on a GPU the results are those of the CPU, and extraction waits for the bus alone.

Under five minutes on one card. First the tests that are marked for a device, on it; then extraction
of a full SDXL UNet and of some of Flux's layers from fp16 weights in RAM at ranks 16, 64 and 128,
a resize from 128 to 32 and a sum of three, against `torch.svd_lowrank` and full SVDs on the same
card, and against sending the same bytes over the bus and nothing else. The times of full SVDs are
those of one layer of each shape, multiplied.

    python benchmarks/on_gpu.py [--device cuda] [--json FILE] [--quick] [--no-tests]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from machine import machine
from peers import full_svd, lowrank_7
from torch import Tensor
from unets import SDXL, targets, unet_shapes

from lorakit.lora_ops import Adapter, DictSource, LoraLayer, add
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.linalg.ranks.rules import RankRule
from lorakit.lora_ops.operations.extract.extract import extraction_work
from lorakit.lora_ops.operations.extract.plan import plan_extraction
from lorakit.lora_ops.operations.resize.resize import Resizing, run_resize
from lorakit.lora_ops.run.devices import Placement, place, upload
from lorakit.lora_ops.run.stream import stream

RANKS = (16, 64, 128)
# One double and two single blocks of Flux: what a GPU of few gigabytes has to hold at once.
FLUX = {
    "double_blocks.0.img_attn.qkv": (9216, 3072),
    "double_blocks.0.img_attn.proj": (3072, 3072),
    "double_blocks.0.img_mlp.0": (12288, 3072),
    "double_blocks.0.img_mlp.2": (3072, 12288),
    "double_blocks.0.img_mod.lin": (18432, 3072),
    "single_blocks.0.linear1": (21504, 3072),
    "single_blocks.0.linear2": (3072, 15360),
    "single_blocks.1.linear1": (21504, 3072),
    "single_blocks.1.linear2": (3072, 15360),
}
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        work: What was done.
        way: By which program or method.
        seconds: Wall time, the device waited for.
        times: Of ours for the same work.
        gigabytes: That had to come over the bus, a second; 0 where it is not counted.
        busy: Share of the time in which the card computed; 0 where it was not looked at.
    """

    work: str
    way: str
    seconds: float
    times: float
    gigabytes: float = 0.0
    busy: float = 0.0


def models(shapes: Shapes) -> tuple[DictSource, DictSource]:
    """Two models in fp16, in RAM, that differ by what a training leaves: all directions, few large."""
    generator = torch.Generator().manual_seed(0)
    made: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    base: dict[str, Tensor] = {}
    tuned: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if shape not in made:
            rank = min(shape[0], 256)
            fall = torch.arange(1, rank + 1).pow(-0.4)
            up = torch.randn(shape[0], rank, generator=generator) * fall
            change = up @ torch.randn(rank, math.prod(shape[1:]), generator=generator)
            old = 0.02 * torch.randn(shape, generator=generator)
            new = old + change.reshape(shape) * (0.002 / change.std())
            made[shape] = old.half(), new.half()
        key = f"model.diffusion_model.{name}.weight"
        base[key], tuned[key] = (one.clone() for one in made[shape])
    return DictSource(base), DictSource(tuned)


def timed(work: Callable[[], object], device: torch.device, *, warm: bool = True) -> float:
    """Seconds of the second run, until the device is done."""
    if warm:
        work()
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Wait until the device has done all it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def busy(work: Callable[[], object], device: torch.device) -> float:
    """Share of the wall time in which a kernel or a copy ran on the card."""
    if device.type != "cuda":
        return 0.0
    from torch.profiler import ProfilerActivity, profile

    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
        wait(device)
    seconds = time.perf_counter() - started
    return sum(event.self_device_time_total for event in found.key_averages()) / 1e6 / seconds


def extraction(name: str, shapes: Shapes, where: Placement, *, slow: bool) -> list[Row]:
    """Ours at three ranks, the bus alone, and the peers at the middle one."""
    base, tuned = models(shapes)
    size = sum(2 * one.nbytes for one in (base.tensor(key) for key in base.keys()))  # noqa: SIM118
    rows: list[Row] = []

    def ours(rank: int) -> None:
        for _ in stream(extraction_work(plan_extraction(base, tuned, rank)), where):
            pass

    def sent() -> None:
        for source in (base, tuned):
            for key in source.keys():  # noqa: SIM118
                upload(source.tensor(key), where)

    own = {rank: timed(lambda rank=rank: ours(rank), where.device) for rank in RANKS}
    for rank, seconds in own.items():
        share = busy(lambda: ours(64), where.device) if rank == 64 else 0.0
        rows.append(Row(f"{name}, rank {rank}", "lorakit", seconds, 1, size / 1e9 / seconds, share))
    seconds = timed(sent, where.device)
    rows.append(Row(name, "the bus alone", seconds, seconds / own[64], size / 1e9 / seconds))
    counts = Counter((shape[0], math.prod(shape[1:])) for shape in shapes.values())
    for way, peer, all_layers in (
        ("svd_lowrank, 7 iterations", lowrank_7, True),
        ("full SVD", full_svd, False),
    ):
        if not slow and not all_layers:
            continue
        total = 0.0
        for shape, count in counts.items():
            delta = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(where.device)
            rank = min(64, *shape)
            total += count * timed(lambda d=delta, r=rank, p=peer: p(d, r), where.device)
        rows.append(Row(f"{name}, rank 64", f"{way}, difference there", total, total / own[64]))
    return rows


def editing(shapes: Shapes, where: Placement) -> list[Row]:
    """A resize and a sum, on the device and on the CPU."""
    linears = {name: shape for name, shape in shapes.items() if len(shape) == 2}

    def lora(rank: int, seed: int) -> Adapter:
        generator = torch.Generator().manual_seed(seed)
        layers = {
            f"diffusion_model.{name}": LoraLayer(
                torch.randn(shape[0], rank, generator=generator).half(),
                torch.randn(rank, shape[1], generator=generator).half(),
                float(rank),
            )
            for name, shape in linears.items()
        }
        return Adapter(layers, {}, {}, "comfy")

    large, three = lora(128, 0), [lora(32, seed) for seed in range(3)]
    rows: list[Row] = []
    for work, way in (
        ("resize 128 to 32", lambda at: list(run_resize(large, Resizing(RankRule("rank", 32)), placement=at))),
        ("add three of 32 to 32", lambda at: add([Term(one, {}, "x") for one in three], "32", device=str(at.device))),
    ):  # fmt: skip
        there = timed(lambda way=way: way(where), where.device)
        here = timed(lambda way=way: way(place("cpu")), torch.device("cpu"), warm=False)
        rows.append(Row(f"{work}, {len(linears)} layers", "lorakit", there, 1))
        rows.append(Row(f"{work}, {len(linears)} layers", "lorakit on the CPU", here, here / there))
    return rows


def tested(device: str) -> str:
    """The tests that are meant for a device, on it."""
    here = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, "tests/operations/test_on_a_device.py"],
        cwd=here,
        env={**os.environ, "LORAKIT_TEST_DEVICE": device},
        capture_output=True,
        text=True,
        check=False,
    )
    print(ran.stdout[-6000:] if ran.returncode else "")
    return ran.stdout.strip().splitlines()[-1]


def main() -> None:
    """Test, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="write the table there too")
    parser.add_argument("--quick", action="store_true", help="a tenth of the layers, no full SVD")
    parser.add_argument("--no-tests", action="store_true")
    arguments = parser.parse_args()
    where = place(arguments.device)
    card = torch.cuda.get_device_name(where.device) if where.device.type == "cuda" else "the CPU"
    print(f"{card}; {machine()}")
    said = "" if arguments.no_tests else tested(arguments.device)
    print(said, flush=True)
    sdxl = targets(unet_shapes(SDXL))
    flux: Shapes = FLUX
    if arguments.quick:
        sdxl = dict(list(sdxl.items())[::10])
        flux = dict(list(FLUX.items())[1:2])
    rows = editing(sdxl, where)
    for name, shapes in (("SDXL", sdxl), ("Flux", flux)):
        label = f"extract {name}, {len(shapes)} layers"
        rows += extraction(label, shapes, where, slow=not arguments.quick)
    print(
        "\n| work | way | seconds | times lorakit's | GB/s | card busy |\n|---|---|---|---|---|---|"
    )
    for row in rows:
        rate, share = (f"{x:.2g}" if x else "" for x in (row.gigabytes, row.busy))
        print(
            f"| {row.work} | {row.way} | {row.seconds:.3f} | {row.times:.2f} | {rate} | {share} |"
        )
    if arguments.json:
        told = {"card": card, "machine": machine(), "tests": said, "rows": list(map(asdict, rows))}
        arguments.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
