"""Resize LoRA File: from a file of the host's list to a new one, layer by layer."""

from __future__ import annotations

from typing import Any

from ..form.activations import NONE, activations_fingerprint, activations_input
from ..form.schema import (
    base_inputs,
    dtype_input,
    file_input,
    path_output,
    prefix_input,
    rank_inputs,
    report_output,
    reported,
    schema,
)
from ..form.texts import edit_text
from ..form.wording import explained
from ..host import host
from ..host.api import io
from .resize_lora import resized

_PREFIX = "loras/resized"


class ResizeFile(io.ComfyNode):
    """Truncates an adapter file, and writes it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "ResizeFile",
            "Resize LoRA File",
            description="Shrinks a LoRA file to a rank, to a share of its energy or to a file size, "
            "and saves it. Read and written layer by layer.",
            search_aliases=["reduce rank", "shrink lora", "compress lora", "LoraReduceRank"],
            is_output_node=True,
            inputs=[
                file_input("lora_name", "The LoRA. It is not changed.", [host.LORAS]),
                *rank_inputs(default=32, budgets=True),
                prefix_input(_PREFIX),
                dtype_input(),
                *base_inputs(),
                activations_input(),
            ],
            outputs=[path_output(), report_output()],
        )

    @classmethod
    def fingerprint_inputs(
        cls, lora_name: str | None, activations: str | None = NONE, **rest: object
    ) -> tuple[str, ...]:
        """A value that changes with the file, so that the host runs the node again."""
        del rest
        return host.fingerprint(lora_name, host.LORAS), activations_fingerprint(activations)

    @classmethod
    @explained
    def execute(
        cls,
        lora_name: str,
        rank: int,
        prefix: str,
        rule: str = "",
        dtype: str | None = None,
        base: Any = None,
        relative_to: Any = None,
        activations: str = NONE,
    ) -> io.NodeOutput:
        """Resize it and write the file.

        Raises:
            FileNotFoundError: There is no such file.
            LoraOpsError: It is damaged or no adapter, the rule is wrong, or the disk is full.
        """
        from ...lora_ops import open_source

        path = host.output_path(prefix, _PREFIX)
        with open_source(host.file_path(lora_name, host.LORAS)) as source:
            report = resized(source, path, rank, rule, dtype, base, relative_to, activations)
        return reported(edit_text(path.name, report), str(path))
