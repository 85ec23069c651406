"""Extract LoRA: from two loaded models to the adapter that takes one to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..form.activations import NONE, activations_fingerprint, activations_input
from ..form.schema import lora_output, report_output, reported, rule_of, schema
from ..form.wording import explained
from ..host import host
from ..host.api import io
from .extraction import extracted, extraction_inputs, kind_inputs, partial_input

if TYPE_CHECKING:
    from ..host.model_source import ModelSource, NoModel


class ExtractLora(io.ComfyNode):
    """Extracts from models as they take effect: patched, in what the host quantises, on any device."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "ExtractLora",
            "Extract LoRA",
            description="The LoRA that takes the base model closest to the tuned one. Each weight is "
            "read as it takes effect, in fp32: models that ComfyUI holds in fp8 and models with LoRAs on them too.",
            search_aliases=["lora extract", "svd", "extract and save lora", "model difference"],
            inputs=[
                io.Model.Input("tuned", tooltip="The model that the LoRA should lead to."),
                io.Model.Input(
                    "base",
                    optional=True,
                    tooltip="The model that it starts from. Without it, `tuned` must be a difference "
                    "already: what ModelMergeSubtract gives.",
                ),
                *extraction_inputs(),
                io.Clip.Input(
                    "tuned_clip", optional=True, tooltip="Text encoders of the tuned model."
                ),
                io.Clip.Input(
                    "base_clip",
                    optional=True,
                    tooltip="Text encoders of the base; give both or none, or a difference alone, as "
                    "with the models.",
                ),
                partial_input(),
                *kind_inputs(),
                activations_input(),
            ],
            outputs=[lora_output("The extracted LoRA."), report_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, activations: str | None = NONE, **rest: object) -> str:
        """A value that changes with the file, so that the host runs the node again."""
        del rest
        return activations_fingerprint(activations)

    @classmethod
    @explained
    def execute(
        cls,
        tuned: Any,
        rank: int,
        rule: str | None = None,
        exact: bool = False,
        full_differences: bool = False,
        allow_partial: bool = False,
        dtype: str = "fp16",
        format: str = "comfy",
        base: Any = None,
        tuned_clip: Any = None,
        base_clip: Any = None,
        kind: str = "lora",
        factor: int = -1,
        activations: str = NONE,
    ) -> io.NodeOutput:
        """Extract it.

        Raises:
            LoraOpsError: The two do not belong together, nothing differs, the rule is wrong, or
                another pack's loader quantised a model.
        """
        from ...lora_ops import parse_rule
        from ..host.model_source import ModelSource, NoModel

        parse_rule(rule_of(rank, rule) or rank)  # not `noise`: a patched weight has no storage
        _check_sides(base, base_clip, tuned, tuned_clip)
        changed = ModelSource("the tuned model", tuned, tuned_clip)
        start = NoModel(changed) if base is None else ModelSource("the base model", base, base_clip)
        report, lora = extracted(
            start,
            changed,
            "extracted",
            beside=_beside(start, changed),
            rank=rank,
            rule=rule,
            exact=exact,
            full_differences=full_differences,
            allow_partial=allow_partial,
            dtype=dtype,
            format=format,
            kind=kind,
            factor=factor,
            activations=activations,
        )
        return reported(report, lora)


def _beside(*sides: ModelSource | NoModel) -> str:
    """What acts on these models and is in no weight; empty if nothing does."""
    told = [f"{side.name} has `{name}`" for side in sides for name in side.injections]
    if not told:
        return ""
    return (
        f"{', '.join(told)} injected, which acts as its layers run and is in no weight, so it is not in "
        "the LoRA; load LoRAs without bypass to have them in it"
    )


def _check_sides(base: Any, base_clip: Any, tuned: Any, tuned_clip: Any) -> None:
    """Refuse half a pair, and a whole model in the place of a difference.

    Raises:
        ArgumentError: Says what to connect.
    """
    from ...lora_ops import ArgumentError

    if base is not None and (tuned_clip is None) != (base_clip is None):
        missing = "base_clip" if base_clip is None else "tuned_clip"
        raise ArgumentError(f"`{missing}` is not connected: text encoders need both sides")
    if base is None and base_clip is not None:
        raise ArgumentError("`base` is not connected, and `base_clip` is: give both or none")
    if base is None and not host.is_difference(tuned):
        raise ArgumentError(
            "`base` is not connected, and `tuned` is a whole model, not a difference; connect the "
            "base, or the output of ModelMergeSubtract as `tuned`"
        )
    if base is None and tuned_clip is not None and not host.is_difference(tuned_clip.patcher):
        raise ArgumentError(
            "`base` is not connected, and `tuned_clip` is a whole text encoder, not a difference; "
            "connect both bases, or the output of CLIPMergeSubtract as `tuned_clip`"
        )
