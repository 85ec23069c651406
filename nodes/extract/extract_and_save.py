"""Extract and Save LoRA: Extract LoRA and Save LoRA as one, for those who only want the file."""

from __future__ import annotations

from typing import Any

from ..form.activations import NONE, activations_fingerprint
from ..form.schema import path_output, prefix_input, report_output, reported, schema
from ..form.texts import headed
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import as_file
from ..host.saving import DEFAULT_PREFIX, saved
from .extract_lora import ExtractLora


class ExtractAndSave(io.ComfyNode):
    """Extracts from models as they take effect, and writes the file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "ExtractAndSave",
            "Extract and Save LoRA (lorakit)",
            description="Extract LoRA and Save LoRA in one node: from loaded models to a file in the "
            "output folder.",
            search_aliases=["lora extract", "extract and save lora", "LoraSave", "LoraExtractKJ"],
            is_output_node=True,
            inputs=[*ExtractLora.define_schema().inputs, prefix_input(DEFAULT_PREFIX)],
            outputs=[path_output(), report_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, activations: str | None = NONE, **rest: object) -> str:
        """A value that changes with the file, so that the host runs the node again."""
        del rest
        return activations_fingerprint(activations)

    @classmethod
    @explained
    def execute(cls, prefix: str, **inputs: Any) -> io.NodeOutput:
        """Extract it and write the file.

        Raises:
            LoraOpsError: As Extract LoRA, or the disk is full.
        """
        host.output_path(prefix, DEFAULT_PREFIX)  # refuse a bad prefix before the work
        lora, report = ExtractLora.execute(**inputs).args
        path, told = saved(as_file(lora), prefix)
        headline, *rest = report.splitlines()
        return reported(headed(headline, *told, *rest), str(path))
