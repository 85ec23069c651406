"""Compare LoRAs: how alike the changes of two adapters are, in numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..form.pictures import as_image
from ..form.schema import lora_input, pictured, report_output, schema
from ..form.texts import comparison_text
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import as_file


class CompareLoras(io.ComfyNode):
    """Compares two adapters layer by layer, from their factors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "CompareLoras",
            "Compare LoRAs",
            description="How alike two LoRAs are: cosine and distance of their changes, in total and "
            "by block, across formats and ranks.",
            search_aliases=["lora similarity", "lora difference", "cosine", "diff loras"],
            is_output_node=True,
            inputs=[
                lora_input("first", "The LoRA that the distance is measured from."),
                lora_input("second", "The other LoRA."),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Cosine and norms by block."),
                report_output(),
            ],
        )

    @classmethod
    @explained
    def execute(cls, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> io.NodeOutput:
        """Compare them.

        Raises:
            LoraOpsError: They are for different models, or a layer has no change of its own.
        """
        from ...lora_ops import compare, decode
        from ...pictures import comparison_picture

        one, other = as_file(first), as_file(second)
        names = (one.stem, other.stem)
        if names[0] == names[1]:  # one file before and after it was edited
            names = (f"first: {names[0]}", f"second: {names[1]}")
        found = compare(
            decode(one, control=True),
            decode(other, control=True),
            names=names,
            progress=host.progress(),
        )
        picture = as_image(comparison_picture(names, found))
        return pictured(cls, picture, comparison_text(names, found))
