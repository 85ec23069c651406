"""Scale LoRA: write strengths by block and name into an adapter for good."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..form.schema import (
    block_inputs,
    lines,
    lora_input,
    lora_output,
    report_output,
    reported,
    schema,
    strength_input,
)
from ..form.several import nothing_in_it
from ..form.texts import edit_text
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import as_file, from_file


class ScaleLora(io.ComfyNode):
    """Multiplies an adapter's changes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "ScaleLora",
            "Scale LoRA",
            description="Writes a strength into a LoRA, as a whole, by block or by name. Exact: the "
            "factors keep their bits, alpha takes the strength.",
            search_aliases=[
                "lora strength",
                "block weight",
                "lbw",
                "mbw",
                "lora weight",
                "negative lora",
            ],
            inputs=[lora_input(), strength_input(), *block_inputs()],
            outputs=[lora_output("The LoRA at its new strength."), report_output()],
        )

    @classmethod
    @explained
    def execute(
        cls, lora: Mapping[str, Tensor], strength: float, blocks: str = "", where: str = ""
    ) -> io.NodeOutput:
        """Scale it.

        Raises:
            LoraOpsError: A rule that fits nothing, or a kind that no strength can be written into.
        """
        from ...lora_ops import Ingredient, MemoryFile, scale_file
        from ...version import __version__

        if not lora:
            return nothing_in_it()
        source = as_file(lora)
        made = MemoryFile(source.name)
        ingredient = Ingredient(source, strength, blocks.strip() or None, lines(where))
        report = scale_file(ingredient, made, version=__version__, progress=host.progress())
        return reported(edit_text(source.name, report), from_file(made))
