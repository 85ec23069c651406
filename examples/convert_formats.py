"""Convert a LoRA file to each format that can hold it, and say why another cannot.

python examples/convert_formats.py LORA FOLDER [ARCHITECTURE]
"""

import sys
from pathlib import Path

from lorakit.lora_ops import LoraOpsError, convert_file, describe, open_source


def main(lora_path: str, folder: str, architecture: str | None = None) -> None:
    """Write a file for each program, and print how each names its tensors."""
    with open_source(lora_path) as lora:
        print(f"{lora.name} is named as {describe(lora).format}")
        for format in ("kohya", "comfy", "diffusers", "peft"):
            # PEFT reads a folder: the weights, and a configuration beside them.
            name = "peft" if format == "peft" else f"{format}.safetensors"
            output = Path(folder) / name
            try:
                report = convert_file(lora, output, format, architecture=architecture)
            except LoraOpsError as error:
                print(f"{format}: {error}")
                continue
            with open_source(output) as written:
                print(f"{format}: {len(report.layers)} layers, such as {min(written.keys())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
