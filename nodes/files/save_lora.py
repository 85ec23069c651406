"""Save LoRA: from a socket to a file in the output folder, complete under its name or not at all."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..form.schema import (
    dtype_input,
    dtype_of,
    format_input,
    lora_input,
    path_output,
    prefix_input,
    report_output,
    reported,
    schema,
)
from ..form.texts import headed
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import as_file
from ..host.saving import DEFAULT_PREFIX, own_title, saved, with_title

KEPT = "as it is"


class SaveLora(io.ComfyNode):
    """Writes an adapter with its metadata made true."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "SaveLora",
            "Save LoRA",
            description="Saves a LoRA as a safetensors file in the output folder, with its metadata "
            "and a hash that is true. In output/loras the loaders list it at once.",
            search_aliases=["save lora", "export lora", "write lora"],
            is_output_node=True,
            inputs=[
                lora_input(tooltip="The LoRA, of any node."),
                prefix_input(DEFAULT_PREFIX),
                format_input(
                    KEPT,
                    "How the tensors are named: kohya for A1111, Forge and ComfyUI, comfy for "
                    "ComfyUI alone, diffusers and peft for those libraries.",
                ),
                dtype_input(),
            ],
            outputs=[path_output(), report_output()],
        )

    @classmethod
    @explained
    def execute(
        cls,
        lora: Mapping[str, Tensor],
        prefix: str,
        format: str = KEPT,
        dtype: str | None = None,
    ) -> io.NodeOutput:
        """Write the file.

        Raises:
            LoraOpsError: The format has no place or no name for a layer, the dtype is too narrow, or
                the disk is full.
        """
        from ...lora_ops import MemoryFile, convert_file
        from ...lora_ops.adapters.formats import detect
        from ...version import __version__

        file, number = as_file(lora), dtype_of(dtype)
        if number is not None or format != KEPT:
            made = MemoryFile(file.name)
            scheme = detect(file.keys(), file.name) if format == KEPT else format
            convert_file(
                file, made, scheme, dtype=number, version=__version__, progress=host.progress()
            )
            with_title(made, own_title(file))
            file = made
        path, told = saved(file, prefix)
        return reported(headed(*told), str(path))
