"""LoRA Info: what a file of the host's list says of itself, from its header, with its picture."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..form.pictures import as_image
from ..form.said import said_lines, said_outputs, said_values
from ..form.schema import file_input, pictured, report_output, reported, schema
from ..form.texts import info_text
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import fingerprint

_NO_PICTURE = (1, 64, 64, 3)


class LoraInfo(io.ComfyNode):
    """Reads words and a picture; no weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "LoraInfo",
            "LoRA Info",
            description="What a LoRA's file says of itself: trigger words, title, base model, author, licence, "
            "training, thumbnail. Only its header is read, and what A1111, rgthree's nodes or LoRA Manager "
            "keep beside it.",
            search_aliases=["trigger words", "lora metadata", "lora thumbnail", "activation text"],
            is_output_node=True,
            inputs=[
                file_input(
                    "lora_name",
                    "A LoRA in models/loras. Read again when it, or a .json file beside it, changes.",
                    [host.LORAS],
                )
            ],
            outputs=[
                *said_outputs(),
                io.Float.Output(
                    display_name="preferred_weight",
                    tooltip="The strength that a file beside it recommends; 1 where none does.",
                ),
                io.Image.Output(
                    display_name="thumbnail",
                    tooltip="The picture in its metadata, or the preview beside it; black where there is none.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None) -> str | float:
        """A value that changes with the file, so that the host runs the node again."""
        return fingerprint(lora_name)

    @classmethod
    @explained
    def execute(cls, lora_name: str) -> io.NodeOutput:
        """Read it.

        Raises:
            FileNotFoundError: There is no such file.
            LoraOpsError: It is damaged.
        """
        from ...lora_ops import describe, described, open_source, read_sidecar
        from ...pictures.thumbnails import picture_of

        path = host.file_path(lora_name, host.LORAS)
        sidecar = read_sidecar(path)
        with open_source(path) as source:
            told = described(source.metadata, sidecar)
            found = replace(describe(source), name=path.name)
            words, metadata = said_values(told, source.metadata)
        weight = told.preferred_weight
        values = (words, metadata, 1.0 if weight is None else weight)
        picture = picture_of(told.thumbnail, sidecar)
        if picture is None:
            report = info_text(found, *said_lines(told))
            return reported(report, *values, torch.zeros(_NO_PICTURE))
        beside = f"thumbnail: {sidecar.picture.name}" if sidecar.picture else ""
        more = [] if told.thumbnail or not beside else [beside]
        report = info_text(found, *said_lines(told), *more)
        return pictured(cls, as_image(picture), report, *values)
