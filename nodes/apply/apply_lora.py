"""Apply LoRA: patch a loaded checkpoint's UNet and text encoders, and say what matched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from torch import Tensor

from ..form.schema import (
    block_inputs,
    lines,
    lora_input,
    report_output,
    reported,
    schema,
    strength_input,
)
from ..form.texts import applied_text
from ..form.wording import explained
from ..host import host
from ..host.lora_model import LoraModel, as_file
from .patch_places import Models
from .patching import Matched, match, summary

if TYPE_CHECKING:
    from ...lora_ops import MemoryFile


class ApplyLora(io.ComfyNode):
    """Puts the host's own patches on a clone of the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "ApplyLora",
            "Apply LoRA",
            description="Applies a LoRA to a model, and to its text encoders where CLIP is connected. "
            "Says which layers matched; matching nothing is an error.",
            search_aliases=["lora loader", "apply lora", "patch model", "block weight", "lbw"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The diffusion model. It is not changed: a clone is."
                ),
                lora_input(tooltip="The LoRA. Stack several Apply nodes, or add LoRAs before."),
                strength_input("strength_model", "Factor on the change of the diffusion model."),
                strength_input("strength_clip", "Factor on the change of the text encoders."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoders. Without it, the LoRA's layers for them are left out.",
                ),
                *block_inputs(),
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
    @explained
    def execute(
        cls,
        model: Any,
        lora: Mapping[str, Tensor],
        strength_model: float,
        strength_clip: float,
        clip: Any = None,
        blocks: str = "",
        where: str = "",
    ) -> io.NodeOutput:
        """Patch clones.

        Raises:
            MismatchError: Nothing of the LoRA fits the model.
            LoraOpsError: A rule that fits nothing.
        """
        if not lora:
            return reported("the LoRA is empty: nothing to apply", model, clip)
        lora = lora if isinstance(lora, LoraModel) else LoraModel(lora)
        file = as_file(LoraModel(host.convert_lora(lora), lora.name, lora.metadata))
        unet = host.shapes(model)
        encoders = host.shapes(clip.patcher) if clip is not None else {}
        models = Models(
            host.key_map(model, clip),
            {**unet, **encoders},
            encoders.keys(),
            clip is not None,
            host.patches,
            host.swap_halves,
        )
        matched = match(file, models, blocks, lines(where))
        _check_any(file, matched)
        model = host.patched(model, matched.groups(unet.keys(), strength_model), lora.metadata)
        if clip is not None:
            groups = matched.groups(encoders.keys(), strength_clip)
            clip = host.patched(clip, groups, lora.metadata)
        strengths = (strength_model, strength_clip)
        return reported(applied_text(lora.name, matched, encoders, strengths), model, clip)


def _check_any(file: MemoryFile, matched: Matched) -> None:
    from ...lora_ops import MismatchError, describe
    from ...lora_ops.report import counted

    if matched.patches:
        return
    told = "; ".join(f"{counted(len(names), 'layer')}: {why}" for why, names in summary(matched))
    model = describe(file).architecture
    kind = f", which is for {model}," if model else ""
    raise MismatchError(
        f"nothing of `{file.name}`{kind} fits this model, so it would do nothing: {told}"
    )
