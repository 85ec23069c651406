"""Resize LoRA: the best approximation of every layer at another rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..form.activations import (
    NONE,
    activations_fingerprint,
    activations_input,
    opened_activations,
)
from ..form.schema import (
    base_inputs,
    dtype_input,
    dtype_of,
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

if TYPE_CHECKING:
    from ...lora_ops import FileSource, Output, Report


class ResizeLora(io.ComfyNode):
    """Truncates an adapter to a rank, a rule or a size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "ResizeLora",
            "Resize LoRA",
            description="Shrinks a LoRA to a rank, to a share of its energy or to a file size, with "
            "the least error possible; its strength stays the same.",
            search_aliases=["reduce rank", "shrink lora", "compress lora", "lora rank"],
            inputs=[
                lora_input(),
                *rank_inputs(default=32, budgets=True),
                dtype_input(),
                *base_inputs(),
                activations_input(),
            ],
            outputs=[lora_output("The LoRA at its new ranks."), report_output()],
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
        lora: Mapping[str, Tensor],
        rank: int,
        rule: str | None = None,
        dtype: str | None = None,
        base: Any = None,
        relative_to: Any = None,
        activations: str = NONE,
    ) -> io.NodeOutput:
        """Resize it.

        Raises:
            LoraOpsError: The rule, or a layer that has no change of its own.
        """
        from ...lora_ops import MemoryFile

        if not lora:
            return nothing_in_it()
        source = as_file(lora)
        made = MemoryFile(source.name)
        report = resized(source, made, rank, rule, dtype, base, relative_to, activations)
        return reported(edit_text(source.name, report), from_file(made))


def resized(
    source: FileSource,
    output: Output,
    rank: int,
    rule: str | None,
    dtype: str | None,
    base: Any = None,
    relative_to: Any = None,
    activations: str = NONE,
) -> Report:
    """Resize a file as the two inputs for ranks say, with progress and Cancel.

    Raises:
        LoraOpsError: The rule, a layer that has no change of its own, or the disk is full.
    """
    from ...lora_ops import resize_file
    from ...version import __version__
    from ..host.model_source import ModelSource

    with opened_activations(activations) as recorded:
        return resize_file(
            source,
            output,
            rule_of(rank, rule) or rank,
            dtype=dtype_of(dtype),
            base=None if base is None else ModelSource("the base model", base),
            relative_to=None if relative_to is None else ModelSource("`relative_to`", relative_to),
            activations=recorded,
            placement=host.placement(),
            version=__version__,
            progress=host.progress(),
        )
