"""Merge two models by a line, then make the file again from the recipe that it carries.

python examples/merge_and_repeat.py BASE TUNED OUTPUT AGAIN [SHARE]
"""

import sys
from contextlib import ExitStack
from pathlib import Path

from lorakit.lora_ops import Recipe, find_files, merge_file, open_recipe, open_source, parse_line
from lorakit.lora_ops import plan_merge_file as plan_file


def run(recipe: Recipe, files: dict[str, Path], output: Path) -> None:
    """Merge these files, and print how far each component moved."""
    with ExitStack() as stack:
        sources = {name: stack.enter_context(open_source(path)) for name, path in files.items()}
        report = merge_file(plan_file(recipe, sources, output=output), output)
    moved = ", ".join(f"{name} by {size:.4f}" for name, size in report.sizes.items())
    print(f"{output}: {report.merged} weights merged, {report.copied} tensors copied; {moved}")


def main(base: str, tuned: str, output: str, again: str, share: str = "0.3") -> None:
    """Print both merges, and the tree of what went in."""
    recipe = parse_line("base + $share*(tuned - base)").bind({"share": float(share)})
    run(recipe, {"base": Path(base), "tuned": Path(tuned)}, Path(output))
    found = open_recipe(output)
    print("\n".join(found.lines()))
    if found.recipe:  # its inputs are known by their hashes, whatever they are called by now
        folders = [Path(base).parent, Path(tuned).parent]
        run(found.recipe, dict(find_files(found.recipe, folders).paths), Path(again))


if __name__ == "__main__":
    main(*sys.argv[1:])
