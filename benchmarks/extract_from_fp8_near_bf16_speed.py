"""Claim: an extraction from scaled fp8 takes at most 1.3 times that from bf16.

Extracts a rank from two files of weights of 3072 x 12288, in bf16 and in scaled fp8, in turns: files in the system's
cache, one process, all cores. Prints seconds of processor time, which other work on the machine does not change
much. How quickly each scheme is decoded: `decode_half_a_gigabyte_a_second.py`.

    python benchmarks/extract_from_fp8_near_bf16_speed.py [--rounds 5] [--layers 4] [--rank 32]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from machine import machine
from safetensors.torch import save_file
from torch import Tensor

from lorakit.lora_ops import extract, open_source

N, K = SHAPE = (3072, 12288)


def pair(folder: Path, layers: int) -> None:
    """Two models, in bf16 and in scaled fp8."""
    for side in range(2):
        plain: dict[str, Tensor] = {}
        scaled: dict[str, Tensor] = {}
        for number in range(layers):
            draw = torch.Generator().manual_seed(number)
            weight = torch.randn(SHAPE, generator=draw) * 0.02
            if side:
                weight += (
                    0.02 * torch.randn(N, 8, generator=draw) @ torch.randn(8, K, generator=draw)
                )
            name = f"double_blocks.{number}.img_mlp.0"
            plain[f"{name}.weight"] = weight.bfloat16()
            scale = weight.abs().max() / 448
            scaled[f"{name}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
            scaled[f"{name}.weight_scale"] = scale
        save_file(plain, folder / f"bf16-{side}.safetensors")
        save_file(scaled, folder / f"fp8-{side}.safetensors")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rank", type=int, default=32)
    asked = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        pair(Path(folder), asked.layers)
        times: dict[str, list[float]] = {"bf16": [], "fp8": []}
        for _ in range(asked.rounds):
            for kind, spent in times.items():
                paths = [Path(folder) / f"{kind}-{side}.safetensors" for side in range(2)]
                started = time.process_time()
                with open_source(paths[0]) as base, open_source(paths[1]) as tuned:
                    extract(base, tuned, asked.rank)
                spent.append(time.process_time() - started)
    medians = {kind: statistics.median(spent) for kind, spent in times.items()}
    print(
        f"extract, {asked.layers} layers, rank {asked.rank}: bf16 {medians['bf16']:.2f} s, fp8 "
        f"{medians['fp8']:.2f} s: {medians['fp8'] / medians['bf16']:.2f} times"
    )


if __name__ == "__main__":
    main()
