"""Claim: an extraction from scaled fp8 takes at most 1.3 times that from bf16; each scheme decodes at 0.25 GB/s a core.

Decodes a weight of 3072 x 12288 in each scheme, random codes, on one core as the workers of an extraction do, and
gives the best of some rounds beside widening the same weight from bf16. Then extracts a rank from two files of such
weights, in bf16 and in scaled fp8, in turns: files in the system's cache, one process, all cores. Prints seconds of
processor time, which other work on the machine does not change much.

    python benchmarks/extract_from_fp8_near_bf16_speed.py [--rounds 5] [--layers 4] [--rank 32]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine
from safetensors.torch import save_file
from torch import Tensor

from lorakit.lora_ops import extract, open_source
from lorakit.lora_ops.files.quantised.bitsandbytes import Blocks
from lorakit.lora_ops.files.quantised.blocks import Mxfp8, Nvfp4
from lorakit.lora_ops.files.quantised.fp8 import ScaledFloat
from lorakit.lora_ops.files.quantised.gguf import Gguf
from lorakit.lora_ops.files.quantised.integers import Grouped, Integers
from lorakit.lora_ops.files.quantised.weight import QuantisedWeight

N, K = SHAPE = (3072, 12288)
E4M3 = torch.float8_e4m3fn


def raw(*shape: int) -> Tensor:
    """Random bytes."""
    return torch.randint(0, 120, shape, dtype=torch.uint8)  # no NaN among the float8


def schemes() -> dict[str, tuple[QuantisedWeight, dict[str, Tensor]]]:
    """Each scheme with the tensors that it decodes."""
    rows, codes, half = torch.ones(N), raw(N, K), raw(N, K // 2)
    found: dict[str, tuple[QuantisedWeight, dict[str, Tensor]]] = {}

    def add(
        name: str, kind: Callable[..., QuantisedWeight], *more: object, **parts: Tensor
    ) -> None:
        found[name] = kind("w", SHAPE, name, dict.fromkeys(parts, ""), *more), parts

    eights = codes.view(E4M3)
    add("fp8", ScaledFloat, SHAPE, E4M3, (1, 1), codes=eights, scales=rows[:1])
    blocks = torch.ones(N, K // 64)
    add("fp8 by blocks", ScaledFloat, SHAPE, E4M3, (N, K // 64), codes=eights, scales=blocks)
    add("mxfp8", Mxfp8, SHAPE, codes=eights, scales=raw(N, K // 32))
    add("nvfp4", Nvfp4, SHAPE, codes=half, scales=raw(N, K // 16), whole=rows[:1])
    bytes_ = codes.view(torch.int8)
    add("int8", Integers, SHAPE, (N, 1), codes=bytes_, scales=rows)
    add("int8, rotated", Integers, SHAPE, (N, 1), 256, codes=bytes_, scales=rows)
    add("int4, rotated", Integers, SHAPE, (N, 1), 256, True, codes=half, scales=rows)
    within, table = raw(N, K // 16).view(E4M3), torch.linspace(-1, 1, 16)
    fours = {"codes": half, "scales": rows, "within": within, "table": table}
    add("int4 in groups", Grouped, SHAPE, (N, 1), 256, True, 16, **fours)
    sizes = torch.ones(N * K // 64)
    add("nf4", Blocks, 64, 1, 0.0, torch.bfloat16, codes=half, sizes=sizes, table=table)
    for name, size in (("Q8_0", 34 * 8), ("Q4_0", 18 * 8), ("Q4_K", 144), ("Q6_K", 210)):
        add(name, Gguf, name, K, codes=raw(N, K // 256 * size))
    return found


def best(rounds: int, work: Callable[[], object]) -> float:
    """Seconds of the quickest round."""
    times: list[float] = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


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
            scaled[f"{name}.weight"] = (weight / scale).to(E4M3)
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wide = torch.randn(SHAPE).bfloat16()
    plain = best(asked.rounds, wide.float)
    print(f"{'bf16':16} {plain:.3f} s  {4 * N * K / plain / 1e9:.2f} GB/s of float32")
    for name, (weight, parts) in schemes().items():
        seconds = best(asked.rounds, lambda weight=weight, parts=parts: weight.decode(parts))
        print(f"{name:16} {seconds:.3f} s  {4 * N * K / seconds / 1e9:.2f} GB/s")
    del wide
    torch.set_num_threads(threads)
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
