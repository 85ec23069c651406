"""Bake a LoRA into a checkpoint, and measure that the result is the checkpoint and the LoRA.

python examples/bake_and_verify.py CHECKPOINT LORA OUTPUT [STRENGTH]
"""

import sys
from pathlib import Path

from lorakit.lora_ops import Ingredient, bake_file, open_source, plan_bake_file, verify


def main(checkpoint_path: str, lora_path: str, output_path: str, strength: str = "1") -> None:
    """Print what rounding to the checkpoint's dtype took off the change, measured twice."""
    output = Path(output_path)
    with open_source(checkpoint_path) as checkpoint, open_source(lora_path) as lora:
        ingredient = Ingredient(lora, float(strength))
        plan = plan_bake_file(checkpoint, [ingredient], output=output)
        report = bake_file(plan, checkpoint, output)
        print(f"{len(report.layers)} weights changed, {report.error:.2e} lost to rounding")

        # The other way round: is what lies between the two files this LoRA? They are not those
        # that it was made from, which is said and allowed.
        with open_source(output) as baked:
            found = verify(checkpoint, baked, lora, strength=float(strength), allow_other=True)
        print(f"read back from the files: {found.error:.2e}")
    for note in (*report.notes, *found.notes):
        print(f"note: {note}")


if __name__ == "__main__":
    main(*sys.argv[1:])
