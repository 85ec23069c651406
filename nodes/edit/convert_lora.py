"""Convert LoRA: the same changes under the names, or in the kind, of another program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..form.schema import (
    lora_input,
    lora_output,
    rank_inputs,
    report_output,
    reported,
    rule_of,
    schema,
)
from ..form.several import nothing_in_it
from ..form.texts import edit_text
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import as_file, from_file

KEPT = "as it is"


class ConvertLora(io.ComfyNode):
    """Renames an adapter's layers, and cuts or joins them where programs fuse projections."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "ConvertLora",
            "Convert LoRA",
            description="Gives a LoRA the names that another program reads, and makes plain LoRA of "
            "LoHa, LoKr, DoRA, OFT and the like. Fused projections are cut or joined exactly.",
            search_aliases=["convert lora", "rename lora", "kohya", "diffusers", "peft", "dora"],
            inputs=[
                lora_input(),
                io.Combo.Input(
                    "format",
                    options=[KEPT, "kohya", "comfy", "diffusers", "peft"],
                    default="kohya",
                    tooltip="Whose names: kohya (A1111, Forge, ComfyUI), comfy (ComfyUI alone), "
                    "diffusers or peft (those libraries).",
                ),
                io.Combo.Input(
                    "kind",
                    options=[KEPT, "lora"],
                    default=KEPT,
                    optional=True,
                    tooltip="lora: every layer becomes plain LoRA, which every program reads. DoRA, OFT, "
                    "BOFT, IA3 and GLoRA are made from the weights and need the base.",
                ),
                *rank_inputs(
                    default=0, budgets=True, none="all of them: exact, where that is small."
                ),
                io.Model.Input(
                    "base",
                    optional=True,
                    tooltip="The model that the LoRA was trained on, for kinds that are made from its "
                    "weights.",
                ),
                io.Model.Input(
                    "reference",
                    optional=True,
                    tooltip="A model that the LoRA is for, where its names alone leave that in doubt: "
                    "block numbers of a pruned UNet, names that several models have.",
                ),
                io.Boolean.Input(
                    "allow_partial",
                    default=False,
                    optional=True,
                    tooltip="Leave out full differences, and other layers, that the format has no "
                    "place for; the report has their share of the change. Off: that is an error.",
                ),
            ],
            outputs=[lora_output("The converted LoRA."), report_output()],
        )

    @classmethod
    @explained
    def execute(
        cls,
        lora: Mapping[str, Tensor],
        format: str,
        kind: str = KEPT,
        rank: int = 0,
        rule: str | None = None,
        base: Any = None,
        reference: Any = None,
        allow_partial: bool = False,
    ) -> io.NodeOutput:
        """Convert it.

        Raises:
            LoraOpsError: The format has no place or no name for a layer, a kind needs the base, or
                what is asked for is nothing.
        """
        from ...lora_ops import MemoryFile, convert_file
        from ...version import __version__
        from ..host.model_source import ModelSource

        if not lora:
            return nothing_in_it()
        source = as_file(lora)
        made = MemoryFile(source.name)
        report = convert_file(
            source,
            made,
            None if format == KEPT else format,
            to=None if kind == KEPT else kind,
            reference=None if reference is None else ModelSource("the reference", reference),
            base=None if base is None else ModelSource("the base model", base),
            allow_partial=allow_partial,
            rule=rule_of(rank, rule),
            placement=host.placement(),
            version=__version__,
            progress=host.progress(),
        )
        return reported(edit_text(source.name, report), from_file(made))
