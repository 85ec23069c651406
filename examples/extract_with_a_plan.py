"""Plan an extraction from headers alone, then run it into a file and count along.

python examples/extract_with_a_plan.py BASE TUNED OUTPUT [RANK]
"""

import sys
from pathlib import Path

from lorakit.lora_ops import extract_file, open_source, place, plan_file


def show(done: int, total: int, name: str) -> None:
    """Say how far the work is, on one line."""
    end = "\n" if done == total else ""
    print(f"\r{done / total:4.0%} {name[-60:]:60}", end=end, file=sys.stderr)


def main(base_path: str, tuned_path: str, output_path: str, rank: str = "16") -> None:
    """Print what will be done, do it, and print what came of it."""
    output = Path(output_path)
    with open_source(base_path) as base, open_source(tuned_path) as tuned:
        # Whatever can be wrong with the request is an error here, before the work.
        plan = plan_file(base, tuned, rank, output=output, exclude=["*time_embed*"])
        weights = plan.pairing.candidates
        numbers = sum(plan.most_ranks(pair) * sum(pair.matrix) for pair in weights)
        size = numbers * plan.dtype.itemsize / 1e6
        print(f"{len(weights)} weights by rule {plan.rule}: at most {size:.2f} MB of {plan.dtype}")

        placement = place("auto")
        report = extract_file(plan, base, tuned, output, placement=placement, progress=show)
    print(f"{len(report.layers)} layers, {report.size / 1e6:.2f} MB, error {report.error:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
