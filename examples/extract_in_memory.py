"""Extract the LoRA between two checkpoints in memory, and look at its layers.

python examples/extract_in_memory.py BASE TUNED [RANK]
"""

import sys

from lorakit.lora_ops import extract, open_source


def main(base_path: str, tuned_path: str, rank: str = "energy=0.9,max=32") -> None:
    """Print the layers that are furthest from the true change, and the whole."""
    with open_source(base_path) as base, open_source(tuned_path) as tuned:
        adapter, report = extract(base, tuned, rank)

    for layer in sorted(report.layers, key=lambda one: one.residual, reverse=True)[:5]:
        print(f"{layer.target}: {layer.kind} {layer.shape}, rank {layer.rank}, {layer.error:.4f}")
    for target, layer in list(adapter.layers.items())[:1]:
        print(f"the first layer, {target}, is a {layer.title} of {layer.dtype}")
        print(f"its change is {tuple(layer.delta().shape)}, at scale {layer.scale:g}")
    print(f"{len(adapter.layers)} layers, relative error {report.error:.4f}")
    print(f"left out: {report.left_out:.2%} of the change")


if __name__ == "__main__":
    main(*sys.argv[1:])
