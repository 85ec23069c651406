"""Resize a LoRA file to a budget: so many bytes, or a mean rank, spent where it buys most.

python examples/resize_to_budget.py LORA OUTPUT [BUDGET]
"""

import sys
from collections import Counter
from pathlib import Path

from lorakit.lora_ops import EditReport, open_source, resize_file


def main(lora_path: str, output_path: str, budget: str = "mean=8") -> None:
    """Print the ranks before and after, and what was lost."""
    with open_source(lora_path) as lora:
        report = resize_file(lora, Path(output_path), budget)

    ranks: Counter[tuple[int, int]] = Counter()
    for layer in report.layers:
        if isinstance(layer, EditReport):
            ranks[layer.was[0], layer.rank] += 1
    for (before, after), count in sorted(ranks.items(), reverse=True):
        print(f"rank {before} to {after}: {count} layers")
    print(f"{report.size} bytes, {report.error:.4f} of the change lost")


if __name__ == "__main__":
    main(*sys.argv[1:])
