"""Claim: SDXL at rank 64 on a CPU, 30 times quicker than kohya's way and as good as exact.

All 794 linear and convolution targets of SDXL's UNet; differences of fp16 weights whose singular
values fall like i^-p, p from 0.2 to 0.8. Peers and ours run on the same tensors in one process.
A peer that is too slow for 794 layers is timed once for each of the shapes, and the times are
multiplied and summed. Computation only: nothing is read or written. On a machine that others use,
`--processor-time` counts what this process computes, on one thread, in place of the clock on the wall.

    python benchmarks/extract_30x_faster_than_kohya.py [--sample 0.1] [--shapes 4] [--rank 64] [--skip-slow]
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections import Counter

import torch
from machine import machine
from peers import PEERS
from torch import Tensor
from unets import SDXL, targets, unet_shapes

from lorakit.lora_ops.linalg import frobenius, residual_, truncated_svd
from lorakit.lora_ops.run.workers import ordered_map

POWERS = (0.2, 0.35, 0.5, 0.8)
Shape = tuple[int, int]


def difference(shape: Shape, power: float, seed: int) -> Tensor:
    """A change of fp16 weights, rounding included, with singular values i^-power."""
    generator = torch.Generator().manual_seed(seed)
    side = min(shape)
    u = torch.linalg.qr(torch.randn(shape[0], side, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(shape[1], side, generator=generator))[0]
    s = torch.arange(1, side + 1, dtype=torch.float32).pow(-power)
    change = (u * s) @ v.mT
    base = (0.02 * torch.randn(shape, generator=generator)).half()
    tuned = (base.float() + change * (0.002 / change.std())).half()
    return tuned.float() - base.float()


def best_error(delta: Tensor, rank: int) -> float:
    """Norm of what the best approximation of that rank misses, from float64 eigenvalues."""
    wide = delta.double()
    gram = wide @ wide.mT if delta.shape[0] <= delta.shape[1] else wide.mT @ wide
    return math.sqrt(float(torch.linalg.eigvalsh(gram)[:-rank].clamp(min=0).sum()))


def ours(delta: Tensor, rank: int, *, exact: bool = False) -> tuple[Tensor, Tensor]:
    """What extraction does to one difference."""
    total = frobenius(delta).square()
    return truncated_svd(delta, rank, total, exact=exact).factors()


def main() -> None:
    """Time every way on every shape, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--sample", type=float, default=1.0, help="share of the layers, 0-1")
    parser.add_argument(
        "--skip-slow", action="store_true", help="leave out the peers with full SVDs"
    )
    parser.add_argument("--shapes", type=int, help="only so many shapes, those with most numbers")
    parser.add_argument("--processor-time", action="store_true", help="of one thread")
    arguments = parser.parse_args()
    rank, clock = arguments.rank, time.perf_counter
    if arguments.processor_time:
        torch.set_num_threads(1)
        clock = time.process_time
    counts = Counter(
        (shape[0], math.prod(shape[1:])) for shape in targets(unet_shapes(SDXL)).values()
    )
    largest = sorted(counts, key=lambda shape: counts[shape] * math.prod(shape))[::-1]
    counts = Counter({shape: counts[shape] for shape in largest[: arguments.shapes]})
    counts = Counter({shape: max(1, round(n * arguments.sample)) for shape, n in counts.items()})
    print(machine())
    print(f"{sum(counts.values())} layers of {len(counts)} shapes, rank {rank}")
    totals: Counter[str] = Counter()
    worst: dict[str, float] = {}

    def record(
        name: str, seconds: float, delta: Tensor, up: Tensor, down: Tensor, best: float
    ) -> None:
        totals[name] += seconds
        if best > 1e-6:  # a 4-row convolution is exact at any rank above 4
            error = float(residual_(delta.clone(), up, down))
            worst[name] = max(worst.get(name, 0.0), error / best - 1)

    for index, (shape, count) in enumerate(sorted(counts.items())):
        kept = min(rank, *shape)
        deltas = [difference(shape, power, index) for power in POWERS[: min(4, count)]]
        bests = [best_error(delta, kept) if kept < min(shape) else 0.0 for delta in deltas]
        layers = [deltas[i % len(deltas)] for i in range(count)]
        for name, exact in (("lorakit", False), ("lorakit --exact", True)):
            started = clock()
            decompose = functools.partial(ours, rank=kept, exact=exact)
            todo = layers[:4] if exact else layers
            results = list(ordered_map(decompose, todo, torch.get_num_threads()))
            seconds = (clock() - started) * count / len(results)
            for i, (up, down) in enumerate(results[: len(deltas)]):
                record(name, seconds if i == 0 else 0.0, deltas[i], up, down, bests[i])
        for name, (peer, slow) in PEERS.items():
            if slow and arguments.skip_slow:
                continue
            torch.manual_seed(0)
            todo = layers[:1] if slow else layers
            started = clock()
            results = [peer(delta, kept) for delta in todo]
            seconds = (clock() - started) * count / len(todo)
            for i, (up, down) in enumerate(results[: len(deltas)]):
                record(name, seconds if i == 0 else 0.0, deltas[i], up, down, bests[i])
        print(f"  {shape[0]}x{shape[1]} x{count}: {totals['lorakit']:.1f} s so far", flush=True)
    print()
    print("| way | seconds | times lorakit's | worst excess error |")
    print("|---|---|---|---|")
    for name, seconds in totals.most_common():
        ratio = seconds / totals["lorakit"]
        print(f"| {name} | {seconds:.1f} | {ratio:.1f} | {worst.get(name, 0.0):.1e} |")


if __name__ == "__main__":
    main()
