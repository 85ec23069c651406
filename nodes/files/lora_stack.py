"""LoRA stack: between `LORA_STACK`, the list of names that other packs pass on, and our sockets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..form.schema import (
    lora_input,
    lora_output,
    report_output,
    reported,
    schema,
    stack_input,
    stack_output,
    strength_input,
)
from ..form.several import nothing_in_it
from ..form.texts import edit_text, headed
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import LoraModel, as_file, from_file, read_once
from ..host.rows import Row, of_stack
from ..host.saving import saved_once

_PREFIX = "loras/stack"


class StackToLora(io.ComfyNode):
    """Adds the files of a stack into one adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "StackToLora",
            "LoRA Stack to LoRA",
            description="Adds the LoRAs of a stack, each at its strengths, into one, exactly.",
            search_aliases=["lora stack", "LORA_STACK", "stack to lora", "merge stack"],
            inputs=[
                stack_input(
                    "A stack of another pack's nodes. An empty one gives a LoRA that does nothing."
                )
            ],
            outputs=[lora_output("The sum of the stack."), report_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_stack: Any = None) -> str:
        """A value that changes with any LoRA file: the host does not tell which the stack names."""
        del lora_stack
        return host.fingerprint(None, host.LORAS)

    @classmethod
    @explained
    def execute(cls, lora_stack: Sequence[Any] = ()) -> io.NodeOutput:
        """Load and add them; those of strength 0 are not looked at.

        Raises:
            FileNotFoundError: A file is not in models/loras.
            LoraOpsError: They are for different models.
        """
        made = summed(of_stack(lora_stack))
        return nothing_in_it() if made is None else reported(*made)


def summed(rows: Sequence[Row]) -> tuple[str, LoraModel] | None:
    """Return a report, and the sum of the LoRAs of a stack, each at its strengths; None for none.

    Args:
        rows: Those of strength 0 are not looked at.

    Raises:
        FileNotFoundError: A file is not in models/loras.
        LoraOpsError: They are for different models, or of a kind whose changes do not add up.
    """
    from ...lora_ops import Ingredient, MemoryFile, add_files, scale_file
    from ...version import __version__

    ingredients: list[Ingredient] = []
    for row in rows:
        name, strength, clip_strength = row
        if not (strength or clip_strength):
            continue
        held = as_file(read_once(host.file_path(name, host.LORAS)))
        if row.blocks:
            weighted = MemoryFile(held.name)
            scale_file(Ingredient(held, blocks=row.blocks), weighted, version=__version__)
            held = weighted
        ingredients.append(Ingredient(held, where=component_rules(held, strength, clip_strength)))
    if not ingredients:
        return None
    made = MemoryFile(" + ".join(one.source.name for one in ingredients))
    report = add_files(ingredients, made, version=__version__, progress=host.progress())
    return edit_text(made.name, report), from_file(made)


def component_rules(held: Any, strength: float, clip_strength: float) -> list[str]:
    """The two strengths of a row, as rules over those components that the file has."""
    from ...lora_ops.adapters.formats import component, modules

    parts = {component(name) for name in modules(held.keys()).modules}
    rules = {"unet": strength, "te": clip_strength}
    return [f"{part}={value!r}" for part, value in rules.items() if part in parts]


class LoraToStack(io.ComfyNode):
    """Saves an adapter where the loaders of other packs find it, and puts its name on a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "LoraToStack",
            "LoRA to LoRA Stack",
            description="Saves a LoRA in output/loras, which the loaders list, and adds it to a stack "
            "for nodes of other packs.",
            search_aliases=["lora stack", "LORA_STACK", "lora to stack"],
            inputs=[
                lora_input(),
                strength_input("strength_model", "Strength on the diffusion model."),
                strength_input("strength_clip", "Strength on the text encoders."),
                io.String.Input(
                    "prefix",
                    default=_PREFIX,
                    tooltip="Beginning of the saved file's name, in output/loras. What it holds is "
                    "added, so that one LoRA is one file at any strength.",
                ),
                stack_input("What it is added to."),
            ],
            outputs=[
                stack_output("The stack with this LoRA last."),
                report_output(),
            ],
        )

    @classmethod
    @explained
    def execute(
        cls,
        lora: Mapping[str, Tensor],
        strength_model: float,
        strength_clip: float,
        prefix: str,
        lora_stack: Sequence[Any] = (),
    ) -> io.NodeOutput:
        """Save it and name it.

        Raises:
            LoraOpsError: The disk is full, or the like.
        """
        if not lora:
            return reported("the LoRA is empty: the stack stays as it is", list(lora_stack))
        # An absolute prefix stays one, and is refused.
        inside = Path(prefix.strip() or _PREFIX)
        inside = inside if inside.parts[0] == host.LORAS else host.LORAS / inside
        path, told = saved_once(as_file(lora), str(inside))
        row = (host.listed_name(path, host.LORAS), strength_model, strength_clip)
        return reported(headed(*told), [*lora_stack, row])
