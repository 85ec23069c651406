"""Lint a LoRA file: what is odd about it, and what each program loads of it.

python examples/lint_a_file.py LORA
"""

import sys

from lorakit.lora_ops import lint, open_source


def main(path: str) -> None:
    """Print a line for each program, and one for each finding with what to do about it."""
    with open_source(path) as source:
        found = lint(source)

    print(f"{path}: {found.format}, for {found.architecture or 'a model that is not known'}")
    for verdict in found.verdicts:
        print(f"{verdict.title}: {verdict.summary}")
    for one in found.findings:
        about = f" in {one.program}" if one.program else ""
        print(f"{one.severity} {one.code}{about}: {one.message}")
        if one.cure:
            print(f"  {one.cure}")
    if found.has_errors:
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
