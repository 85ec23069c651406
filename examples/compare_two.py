"""Compare two LoRAs: how alike their changes are, whatever their formats and ranks.

python examples/compare_two.py A B
"""

import sys

from lorakit.lora_ops import compare, decode, open_source


def main(first_path: str, second_path: str) -> None:
    """Print where they differ most, and the cosine and distance of the whole."""
    with open_source(first_path) as first, open_source(second_path) as second:
        found = compare(decode(first), decode(second), names=(first_path, second_path))

    both = [layer for layer in found.layers if 0 not in layer.ranks]
    for layer in sorted(both, key=lambda one: one.cosine)[:5]:
        print(f"{layer.target}: cosine {layer.cosine:.4f}, ranks {layer.ranks}")
    print(f"{found.shared} of {len(found.layers)} layers in both")
    print(f"cosine {found.cosine:.4f}, distance {found.distance:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
