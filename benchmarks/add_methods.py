"""Claim: a method that makes factors costs ten milliseconds a layer, but for ctm, which costs twice that.

Three LoRAs of rank 32 with fp16 factors, one layer of 1280 x 1280 and one of 3072 x 3072, each method of `add`:
the method alone (the frame of the factors, from the inner products that every sum but the plain one needs, and what is
solved in it), and the whole layer as `add` computes it, with inner products, the cut to the directions that there are, rounding, error and cosine. The quickest of some
rounds counts, in processor time of one thread.

    OMP_NUM_THREADS=1 python benchmarks/add_methods.py [--rounds 5] [--size 1280 --size 3072]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import torch
from machine import machine

from lorakit.lora_ops import Adapter, LoraLayer, Term, parse_rank, place
from lorakit.lora_ops.adapters.matching.align import match_adapters
from lorakit.lora_ops.operations.add.combine import Stack, stacked
from lorakit.lora_ops.operations.add.layer import Adding, added
from lorakit.lora_ops.operations.methods import FACTORED, METHODS, Task, Value, check_adding
from lorakit.lora_ops.operations.methods.factored.frame import framed

RANK, COUNT = 32, 3
TARGET = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q"
WAYS: dict[str, tuple[str, Mapping[str, Value]]] = {
    **{name: (name, {}) for name in METHODS if METHODS[name].most is None},
    **{name: (name, {}) for name in FACTORED},
    "dare, units": ("dare", {"scope": "units"}),
    **{
        f"{name}, element": (name, {"scope": "element"})
        for name in FACTORED
        if FACTORED[name].element
    },
}


def lora(size: int, seed: int) -> Adapter:
    """One layer of rank 32 whose directions fall slowly."""
    generator = torch.Generator().manual_seed(seed)
    fall = torch.arange(1, RANK + 1).pow(-0.5)
    up = 0.02 * torch.randn(size, RANK, generator=generator) * fall
    down = torch.randn(RANK, size, generator=generator)
    return Adapter({TARGET: LoraLayer(up.half(), down.half(), alpha=16.0)}, {}, {}, "comfy")


def quickest(way: Callable[[], object], rounds: int) -> float:
    """Milliseconds of processor time."""
    times: list[float] = []
    for _ in range(rounds):
        started = time.process_time()
        way()
        times.append(time.process_time() - started)
    return 1e3 * min(times)


def main() -> None:
    """Time every method on every size, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, action="append", help="of the square weight")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    sizes = arguments.size or [1280, 3072]
    heads = [f"{size}: method | whole layer" for size in sizes]
    print(f"| method | {' | '.join(heads)} |\n|---|{'---|---|' * len(sizes)}")
    where = place("cpu")
    for title, (method, given) in WAYS.items():
        count = min(COUNT, FACTORED[method].most or COUNT) if method in FACTORED else COUNT
        of_elements = given.get("scope") == "element"
        rule = parse_rank(RANK) if of_elements else None
        told = check_adding(method, count, given, recompresses=of_elements)
        cells: list[str] = []
        for size in sizes:
            terms = [Term(lora(size, seed), name=str(seed)) for seed in range(count)]
            match = match_adapters(terms)
            stack = stacked([one.adapter.layers[TARGET] for one in match.terms])
            alone = (
                ""
                if method in METHODS or of_elements
                else f"{_alone(stack, told, method, size, arguments.rounds):.1f}"
            )
            adding = Adding(rule, method, told)

            def layer(adding: Adding = adding, match=match) -> object:
                return added(match.terms, match.groups[0], adding, where)

            rounds = 1 if of_elements and size > 2000 else arguments.rounds
            cells += [alone, f"{quickest(layer, rounds):.1f}"]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


def _alone(stack: object, told: Mapping[str, Value], method: str, size: int, rounds: int) -> float:
    if not isinstance(stack, Stack):
        raise TypeError("LoRAs have factors")
    task = Task((size, size), (1.0,) * len(stack.sizes), told, TARGET, 0)

    known = stack.exact()
    products = (known.left, known.right)

    def solved() -> object:
        frame = framed(stack.up, stack.down, stack.sizes, stack.scales, products)
        return FACTORED[method].solve(frame, task)

    return quickest(solved, rounds)


if __name__ == "__main__":
    main()
