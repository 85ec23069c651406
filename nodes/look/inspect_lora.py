"""Inspect LoRA: what an adapter is and where its strength lies, in numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..form.pictures import as_image
from ..form.said import said_lines, said_outputs, said_values
from ..form.schema import lora_input, pictured, report_output, schema
from ..form.texts import info_text
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import as_file, said_of


class InspectLora(io.ComfyNode):
    """Shows rank and energy by block, and the spectrum."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "InspectLora",
            "Inspect LoRA",
            description="What a LoRA is: kind, format, model, ranks; and a picture of where its "
            "strength lies, block by block, and of how many directions carry it.",
            search_aliases=[
                "lora info",
                "lora metadata",
                "trigger words",
                "lora spectrum",
                "analyse lora",
            ],
            is_output_node=True,
            inputs=[lora_input()],
            outputs=[
                io.Image.Output(
                    display_name="picture", tooltip="Rank and energy by block, and the spectrum."
                ),
                report_output(),
                *said_outputs(),
            ],
        )

    @classmethod
    @explained
    def execute(cls, lora: Mapping[str, Tensor]) -> io.NodeOutput:
        """Inspect it.

        Raises:
            LoraOpsError: It is damaged, or no adapter.
        """
        from ...lora_ops import decode, describe, spectra
        from ...pictures import inspection_picture

        file = as_file(lora)
        told = said_of(lora)
        report = info_text(describe(file), *said_lines(told))
        found = spectra(
            decode(file, control=True), placement=host.placement(), progress=host.progress()
        )
        picture = as_image(inspection_picture(file.name, found))
        return pictured(cls, picture, report, after=said_values(told, file.metadata))
