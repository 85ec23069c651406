"""Apply LoRA: patch a loaded checkpoint's UNet and text encoders, and say what matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..form.schema import (
    block_inputs,
    lines,
    lora_input,
    report_output,
    reported,
    schema,
    stack_input,
    strength_input,
)
from ..form.texts import all_applied_text
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.rows import of_stack
from .applying import apply, apply_rows

# What stands for a stack that is not connected: of one that is, the host does not tell beforehand.
NO_STACK = object()


class ApplyLora(io.ComfyNode):
    """Puts the host's own patches on a clone of the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "ApplyLora",
            "Apply LoRA",
            description="Applies a LoRA, or a stack of them, to a model, and to its text encoders where CLIP "
            "is connected. Says which layers matched; matching nothing is an error.",
            search_aliases=[
                "lora loader",
                "apply lora",
                "apply lora stack",
                "patch model",
                "block weight",
                "lbw",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The diffusion model. It is not changed: a clone is."
                ),
                lora_input(
                    tooltip="The LoRA. Stack several Apply nodes, or add LoRAs before.",
                    optional=True,
                ),
                strength_input(
                    "strength_model",
                    "Factor on the change of the diffusion model.",
                    optional=True,
                ),
                strength_input(
                    "strength_clip", "Factor on the change of the text encoders.", optional=True
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoders. Without it, the LoRA's layers for them are left out.",
                ),
                *block_inputs(),
                stack_input(
                    "A stack, applied after the LoRA or in place of it. Its rows have strengths of their "
                    "own: those here are for the LoRA alone."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA on it."),
                io.Clip.Output(
                    display_name="clip", tooltip="The text encoders with the LoRA on them."
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_stack: Any = NO_STACK, **rest: object) -> str:
        """A value that changes with the files that a stack may name, where one is connected."""
        del rest
        return "" if lora_stack is NO_STACK else host.fingerprint(None, host.LORAS)

    @classmethod
    @explained
    def execute(
        cls,
        model: Any,
        lora: Mapping[str, Tensor] | None = None,
        strength_model: float = 1.0,
        strength_clip: float = 1.0,
        clip: Any = None,
        blocks: str = "",
        where: str = "",
        lora_stack: Sequence[Any] | None = None,
    ) -> io.NodeOutput:
        """Patch clones.

        Raises:
            FileNotFoundError: A file of the stack is not in models/loras.
            MismatchError: Nothing of the LoRA, or of one on the stack, fits the model.
            LoraOpsError: A rule that fits nothing.
        """
        from ...lora_ops import ArgumentError

        if lora is None and lora_stack is None:
            raise ArgumentError("nothing arrives at `lora`; connect it, or a `lora_stack`")
        alone: list[tuple[str, list[str]]] = []
        if lora:
            strengths = (strength_model, strength_clip)
            model, clip, told = apply(model, clip, lora, strengths, blocks, lines(where))
            alone = [(getattr(lora, "name", "LoRA"), told)]
        made = apply_rows(model, clip, of_stack(lora_stack or ()))
        if told := [*alone, *made.told]:
            return reported(all_applied_text(told, made.notes), made.model, made.clip)
        what = "LoRA" if lora_stack is None else "stack"
        return reported(f"the {what} is empty: nothing to apply", made.model, made.clip)
