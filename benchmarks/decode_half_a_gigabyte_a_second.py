"""Claim: every scheme that is read decodes at 0.5 GB/s of fp32 output or better on two cores; writing is as quick.

Random codes of a weight of 3072 x 12288 are decoded by one thread in one process, as the workers of an extraction
do, one a core. The best of some rounds counts, in seconds of processor time, which other work on the machine does
not change much; two cores decode two weights in that time. Beside it stands widening the same weight from bf16.
The same with each scheme that is written, from fp32 to codes and scales, in tiles as a bake has them.

    python benchmarks/decode_half_a_gigabyte_a_second.py [--rounds 5] [NAME ...]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from machine import machine
from torch import Tensor

from lorakit.lora_ops.files.quantised.bitsandbytes import Blocks, Rows
from lorakit.lora_ops.files.quantised.blocks import Mxfp8, Nvfp4
from lorakit.lora_ops.files.quantised.fp8 import ScaledFloat
from lorakit.lora_ops.files.quantised.gguf import Gguf
from lorakit.lora_ops.files.quantised.integers import Grouped, Integers
from lorakit.lora_ops.files.quantised.nunchaku.awq import Modulation
from lorakit.lora_ops.files.quantised.nunchaku.low_rank import LowRank
from lorakit.lora_ops.files.quantised.storages import SCHEMES, Scheme
from lorakit.lora_ops.files.quantised.torchao import Affine
from lorakit.lora_ops.files.quantised.weight import QuantisedWeight
from lorakit.lora_ops.files.reading.gguf_header import TYPES

N, K = SHAPE = (3072, 12288)
TILE = (1 << 19) // K  # rows
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
PLAIN = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K")
Parts = dict[str, Tensor]


def raw(*shape: int) -> Tensor:
    """Random bytes."""
    return torch.randint(0, 120, shape, dtype=torch.uint8)  # no NaN among the float8


def weights() -> Iterator[tuple[str, QuantisedWeight, Parts]]:
    """Each scheme with the tensors that it decodes."""
    rows, codes, half = torch.ones(N), raw(N, K), raw(N, K // 2)
    table = torch.linspace(-1, 1, 16)

    def made(
        name: str, kind: Callable[..., QuantisedWeight], *more: object, **parts: Tensor
    ) -> tuple[str, QuantisedWeight, Parts]:
        return name, kind("w", SHAPE, name, dict.fromkeys(parts, ""), *more), parts

    for name, dtype in (("fp8 e4m3", E4M3), ("fp8 e5m2", E5M2)):
        parts = {"codes": codes.view(dtype), "scales": rows[:1]}
        yield made(f"{name}, scaled", ScaledFloat, SHAPE, dtype, (1, 1), **parts)
    parts = {"codes": codes.view(E4M3), "scales": torch.ones(N, K // 64)}
    yield made("fp8 e4m3, by blocks of 64", ScaledFloat, SHAPE, E4M3, (N, K // 64), **parts)
    yield made("mxfp8", Mxfp8, SHAPE, codes=codes.view(E4M3), scales=raw(N, K // 32))
    yield made("nvfp4", Nvfp4, SHAPE, codes=half, scales=raw(N, K // 16), whole=rows[:1])
    parts = {"codes": codes.view(torch.int8), "scales": rows}
    yield made("int8", Integers, SHAPE, (N, 1), **parts)
    yield made("int8, rotated", Integers, SHAPE, (N, 1), 256, **parts)
    yield made("int8 of bitsandbytes", Rows, SHAPE, (N, 1), **parts)
    yield made("int8 of torchao", Affine, SHAPE, (N, 1), torch.int8, torch.bfloat16, **parts)
    parts = {"codes": half, "scales": rows}
    yield made("int4, rotated", Integers, SHAPE, (N, 1), 256, True, **parts)
    parts |= {"within": raw(N, K // 16).view(E4M3), "table": table}
    yield made("int4 in groups, rotated", Grouped, SHAPE, (N, 1), 256, True, 16, **parts)
    parts |= {"corrections": torch.ones(K // 16, N)}
    yield made("int4 in groups, corrected", Grouped, SHAPE, (N, 1), 256, True, 16, **parts)
    parts = {"codes": half, "sizes": torch.ones(N * K // 64), "table": table}
    yield made("nf4", Blocks, 64, 1, 0.0, torch.bfloat16, **parts)
    parts |= {"sizes": raw(N * K // 64), "nested sizes": torch.ones(N * K // 64 // 256)}
    parts |= {"nested table": torch.linspace(-1, 1, 256)}
    yield made("nf4, nested", Blocks, 64, 256, 0.0, torch.bfloat16, **parts)
    branch = {"up": torch.ones(N, 32).bfloat16(), "down": torch.ones(K, 32).bfloat16()}
    parts = {"codes": half, "scales": torch.ones(K // 64, N), "smooth": torch.ones(K), **branch}
    yield made("SVDQuant int4", LowRank, 0, N, False, **parts)
    parts |= {"scales": raw(K // 16, N).view(E4M3)}
    yield made("SVDQuant nvfp4", LowRank, 0, N, True, **parts)
    parts = {"codes": half.view(torch.int32), "scales": torch.ones(K // 64, N)}
    yield made("AWQ int4", Modulation, 6, offsets=torch.ones(K // 64, N), **parts)
    for kind in TYPES.values():
        if kind.name not in PLAIN:
            blocks = raw(N, K // kind.block * kind.size)
            yield made(kind.name, Gguf, kind.name, K, codes=blocks)


def writers() -> Iterator[tuple[str, Callable[[], object]]]:
    """Each scheme that is written, with the writing of one weight."""
    weight = torch.randn(SHAPE) * 0.02
    for name, scheme in SCHEMES.items():

        def write(scheme: Scheme = scheme) -> None:
            encoder = scheme.encoder("w.weight", SHAPE)
            if encoder.looks:
                encoder.look(weight)
            for first in range(0, N, TILE):
                encoder.encode(weight[first : first + TILE], first)
            encoder.parts()

        yield name, write


def measured(name: str, rounds: int, work: Callable[[], object]) -> None:
    """Print a row: of the quickest round."""
    times: list[float] = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    print(f"| {name} | {min(times):.3f} | {2 * 4e-9 * N * K / min(times):.2f} |", flush=True)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="measure these alone")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), end="\n\n")
    head = "CPU s | two cores, GB/s of fp32 output |\n|---|---|---|"
    print(f"| decoded | {head}")
    if not asked.names:
        measured("bf16, widened", asked.rounds, torch.randn(SHAPE).bfloat16().float)
    for name, weight, parts in weights():
        if name in asked.names or not asked.names:
            measured(name, asked.rounds, lambda w=weight, p=parts: w.decode(p))
    print(f"\n| written | {head}")
    for name, write in writers():
        if name in asked.names or not asked.names:
            measured(name, asked.rounds, write)


if __name__ == "__main__":
    main()
