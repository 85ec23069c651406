"""Add three LoRAs at strengths, exactly, and once more at a fixed rank; save the second.

python examples/add_three.py A B C OUTPUT
"""

import sys

from lorakit.lora_ops import Adapter, Term, add, decode, open_source, save_adapter

STRENGTHS = (0.7, 0.5, -0.3)


def term(adapter: Adapter, strength: float, name: str) -> Term:
    """Return an adapter at one strength in all its layers."""
    return Term(adapter, dict.fromkeys(adapter.layers, strength), name)


def main(first: str, second: str, third: str, output: str) -> None:
    """Print the ranks and the error of both sums."""
    paths = (first, second, third)
    # Layers are read when they are asked for, so the files stay open meanwhile.
    with open_source(first) as a, open_source(second) as b, open_source(third) as c:
        adapters = [decode(source) for source in (a, b, c)]
        terms = [term(*both) for both in zip(adapters, STRENGTHS, paths, strict=True)]
        _, exact = add(terms)
        small, report = add(terms, 8)
    print(f"exactly: ranks up to {max(layer.rank for layer in exact.layers)}")
    print(f"at rank 8: {len(small.layers)} layers, error {report.error:.4f}")
    save_adapter(small, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
