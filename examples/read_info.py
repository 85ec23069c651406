"""Say what any file is: an adapter, a checkpoint, an embedding, ... from its header alone.

python examples/read_info.py FILE...
"""

import sys

from lorakit.lora_ops import LoraOpsError, describe, open_source


def main(*paths: str) -> None:
    """Print a few lines for each file; one that cannot be read is said, and the next one read."""
    for path in paths:
        try:
            with open_source(path) as source:
                info = describe(source)
        except LoraOpsError as error:
            print(error, file=sys.stderr)
            continue
        print(f"{path}: {info.kind}, {info.architecture or 'of no known architecture'}")
        for name, part in info.components.items():
            print(f"  {name}: {part.tensors} tensors, {part.parameters} values")
        if info.ranks:
            ranks = ", ".join(f"{rank} ({count})" for rank, count in info.ranks.items())
            print(f"  {info.format}, ranks (layers) {ranks}")


if __name__ == "__main__":
    main(*sys.argv[1:])
