"""A training step through injected paths takes no longer than through PEFT's on the same layers.

    python benchmarks/train_as_fast_as_peft.py [--rank 16] [--width 640] [--tokens 256]

Forward and backward of eight linear layers with LoRA, and with DoRA, on the CPU, in turns in one
process; needs PEFT.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import peft
import torch
from torch import nn

from lorakit.lora_ops import inject

LAYERS = 8


def step(module: nn.Module, inputs: torch.Tensor) -> float:
    """Seconds of one forward and backward."""
    start = time.perf_counter()
    module(inputs).square().mean().backward()
    return time.perf_counter() - start


def compare(kind: str, rank: int, width: int, tokens: int, rounds: int) -> float:
    """Print medians of both and return PEFT's time over ours."""
    torch.manual_seed(0)
    plain = nn.Sequential(*(nn.Linear(width, width) for _ in range(LAYERS)))
    theirs = peft.get_peft_model(
        copy.deepcopy(plain),
        peft.LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=[str(i) for i in range(LAYERS)],
            use_dora=kind == "dora",
        ),
    )
    inject(plain, "all", rank, alpha=rank, kind=kind, init="kaiming")
    inputs = torch.randn(1, tokens, width)
    times: dict[str, list[float]] = {"peft": [], "ours": []}
    for _ in range(rounds):
        for name, module in (("peft", theirs), ("ours", plain)):
            times[name].append(step(module, inputs))
    medians = {name: statistics.median(found[2:]) for name, found in times.items()}
    ratio = medians["peft"] / medians["ours"]
    print(
        f"{kind}: PEFT {1e3 * medians['peft']:.1f} ms, ours {1e3 * medians['ours']:.1f} ms, {ratio:.2f}x"
    )
    return ratio


def main() -> None:
    """Compare both kinds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    for kind in ("lora", "dora"):
        compare(kind, **vars(options))


if __name__ == "__main__":
    main()
