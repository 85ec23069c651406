"""Claim: an extraction by activations takes a few times as long as a plain one, and recording about a layer's own product.

Single layers of SDXL's shapes, differences as in `extract_30x_faster_than_kohya.py`, extracted as a whole with and
without a record of inputs as `record` makes it: the whole matrix up to a width of 1024, else 128 directions and the
diagonal. Beside it what it takes to record 1024 rows, against the product of layer and rows in float32. Processor
time of one thread, the quickest of some rounds.

    OMP_NUM_THREADS=1 python benchmarks/extract_by_outputs_in_a_few_times_plain.py [--rank 32] [--rounds 3]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from extract_30x_faster_than_kohya import difference
from machine import machine
from torch import Tensor

from lorakit.lora_ops import DictSource, extract
from lorakit.lora_ops.linalg.moments import Gathered

SHAPES = (
    (640, 640),
    (640, 2560),
    (1280, 1280),
    (1280, 2048),
    (10240, 1280),
    (1280, 5120),
    (640, 640, 3, 3),
)
ROWS = 1024
FULL, DIRECTIONS = 1024, 128
NAME = "diffusion_model.middle_block.0"


def main() -> None:
    """Time every shape, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine())
    print("| layer | record | plain | by outputs | times plain | recording | times the product |")
    print("|---|---|---|---|---|---|---|")
    for index, shape in enumerate(SHAPES):
        width = math.prod(shape[1:])
        delta = difference((shape[0], width), 0.5, index).reshape(shape)
        weight = (0.02 * torch.randn(shape)).half().float()
        base, tuned = (DictSource({f"{NAME}.weight": one}) for one in (weight, weight + delta))
        rows = _inputs(width)
        gathered = Gathered(width, FULL, DIRECTIONS, torch.device("cpu"))
        recording = quickest(arguments.rounds, lambda g=gathered, x=rows: g.add(x))
        product = quickest(arguments.rounds, lambda x=rows, w=weight: x @ w.flatten(1).mT)
        known = DictSource({f"{NAME}.{form}": one for form, one in gathered.tensors().items()})

        def run(activations: DictSource | None, base=base, tuned=tuned) -> float:
            return quickest(
                arguments.rounds,
                lambda: extract(base, tuned, arguments.rank, activations=activations),
            )

        plain, weighed = run(None), run(known)
        print(
            f"| {' x '.join(map(str, shape))} | {gathered.form} | {plain * 1e3:.0f} ms | {weighed * 1e3:.0f} ms | "
            f"{weighed / plain:.1f} | {recording * 1e3:.1f} ms | {recording / product:.2f} |"
        )


def quickest(rounds: int, work: Callable[[], object]) -> float:
    """Processor seconds of the quickest of some rounds."""
    found: list[float] = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def _inputs(width: int) -> Tensor:
    """Rows of which some directions are far larger than others."""
    sizes = torch.arange(1, width + 1).float().pow(-0.5)
    return torch.randn(ROWS, width) * sizes[torch.randperm(width)]


if __name__ == "__main__":
    main()
