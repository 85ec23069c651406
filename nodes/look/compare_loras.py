"""Compare LoRAs: how alike the changes of adapters are, and where they are in each other's way."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import Tensor

from ..form.conflicts import conflict_text
from ..form.pictures import as_image
from ..form.schema import lora_input, pictured, report_output, schema
from ..form.several import MOST, connected, lora_sockets, socket_name
from ..form.texts import comparison_text
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import as_file


class CompareLoras(io.ComfyNode):
    """Compares adapters layer by layer, from their factors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "CompareLoras",
            "Compare LoRAs",
            description="How alike LoRAs are: cosines of their changes, in total and by block, across formats and "
            "ranks; of two their distance, of more also where they are in each other's way: shared directions, "
            "signs that disagree, and what their sum is.",
            search_aliases=[
                *("lora similarity", "lora difference", "cosine", "diff loras", "lora conflict"),
                "lora interference",
            ],
            is_output_node=True,
            inputs=[
                lora_input("first", "The LoRA that the distance is measured from."),
                lora_input("second", "The other LoRA."),
                lora_sockets(
                    0,
                    MOST - 2,
                    "More LoRAs to compare with the two; a new socket appears for the next.",
                ),
                io.Float.Input(
                    "share",
                    default=0.2,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Of three LoRAs or more: of the elements of each change, how many count as large.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Cosine and norms by block."),
                report_output(),
                io.String.Output(
                    display_name="json", tooltip="All numbers, by block and by layer, as JSON."
                ),
            ],
        )

    @classmethod
    @explained
    def execute(
        cls,
        first: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        loras: Mapping[str, Mapping[str, Tensor] | None] | None = None,
        share: float = 0.2,
    ) -> io.NodeOutput:
        """Compare them.

        Raises:
            LoraOpsError: They are for different models, or a layer has no change of its own.
        """
        from ...lora_ops import compare, compare_several, decode
        from ...pictures import comparison_picture, conflict_picture

        more = connected(loras or {})
        files = [as_file(one) for one in (first, second, *more.values())]
        names = [one.stem for one in files]
        if len(set(names)) < len(names):  # one file before and after it was edited
            places = ("first", "second", *map(socket_name, more))
            names = [f"{place}: {name}" for place, name in zip(places, names, strict=True)]
        adapters = [decode(one, control=True) for one in files]
        if len(files) == 2:
            two = (names[0], names[1])
            found = compare(adapters[0], adapters[1], names=two, progress=host.progress())
            picture, told = comparison_picture(two, found), comparison_text(two, found)
        else:
            found = compare_several(adapters, names=names, share=share, progress=host.progress())
            picture, told = conflict_picture(names, found), conflict_text(names, found)
        numbers = json.dumps(found.to_dict(), indent=1)
        return pictured(cls, as_image(picture), told, after=[numbers])
