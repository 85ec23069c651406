"""Claim: a DoRA or LoKr of SDXL takes no more than three times as long as its LoRA; a LoHa takes minutes.

Differences as in `extract_30x_faster_than_kohya.py`, made into every form by what extraction calls, one layer at
a time. A layer of each of the heaviest shapes is timed, multiplied by how many there are of it, and the sum
scaled by the share of all numbers that those shapes hold. Computation only, rounding and measuring included.

    python benchmarks/extract_dora_and_lokr_as_fast_as_lora.py [--shapes 6] [--rank 32]
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter

import torch
from extract_30x_faster_than_kohya import difference
from machine import machine
from unets import SDXL, targets, unet_shapes

from lorakit.lora_ops.linalg import frobenius
from lorakit.lora_ops.linalg.ranks.rules import RankRule
from lorakit.lora_ops.operations.extract.kinds.change import Change
from lorakit.lora_ops.operations.extract.kinds.table import FORMS

FACTOR = 8


def main() -> None:
    """Time every form on every shape, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", type=int, default=6, help="how many of the heaviest shapes")
    parser.add_argument("--rank", type=int, default=32)
    arguments = parser.parse_args()
    counts = Counter(targets(unet_shapes(SDXL)).values())
    weights = {shape: count * math.prod(shape) for shape, count in counts.items()}
    # Kernels are a form of their own to one of the forms: two of these are among them.
    kernels = [shape for shape in weights if len(shape) > 2 and math.prod(shape[2:]) > 1]
    heavy = sorted(weights, key=weights.__getitem__, reverse=True)[: arguments.shapes]
    heavy += [one for one in sorted(kernels, key=weights.__getitem__)[-2:] if one not in heavy]
    share = sum(weights[one] for one in heavy) / sum(weights.values())
    print(machine())
    print(
        f"{len(heavy)} of {len(counts)} shapes, {share:.0%} of {sum(counts.values())} layers' numbers"
    )
    seconds: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for index, shape in enumerate(heavy):
        delta = difference((shape[0], math.prod(shape[1:])), 0.5, index)
        base = 0.02 * torch.randn(delta.shape)
        for name, form in FORMS.items():
            made = form if form.is_for(shape) else FORMS["lora"]
            rule = RankRule("rank", max(1, round(arguments.rank * made.share)))
            factor = FACTOR if made.takes_factor else -1
            started = time.process_time()
            change = Change(delta, shape, rule, torch.float16, base.clone, factor)
            layer = made.make(change).layer.in_dtype(name, torch.float16)
            weight = base.reshape(shape) if layer.needs_base else None
            found = layer.delta() if weight is None else layer.change(weight)
            frobenius(delta - found.reshape(delta.shape))
            seconds[name] += counts[shape] * (time.process_time() - started) / share
            numbers = sum(one.numel() for one in layer.stored_numbers().values())
            sizes[name] += round(counts[shape] * 2 * numbers / share)
    print("| form | seconds | times LoRA's | size |")
    for name in FORMS:
        print(
            f"| {name} | {seconds[name]:.0f} | {seconds[name] / seconds['lora']:.1f} | {sizes[name] / 1e6:.0f} MB |"
        )


if __name__ == "__main__":
    main()
