"""Load LoRA: from a file of the host's list to a socket."""

from __future__ import annotations

from ..form.said import said_lines, said_outputs, said_values
from ..form.schema import file_input, lora_output, report_output, reported, schema
from ..form.texts import info_text
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import as_file, fingerprint, read, said_of


class LoadLora(io.ComfyNode):
    """Reads an adapter, with its metadata, and says what it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "LoadLora",
            "Load LoRA (lorakit)",
            description="Loads a LoRA of any kind and format, with its metadata, and says what it is "
            "and by which words it is called.",
            search_aliases=["lora loader", "open lora", "lora info", "trigger words", "LORA_MODEL"],
            inputs=[
                file_input(
                    "lora_name",
                    "A LoRA, LoHa, LoKr, DoRA, … in models/loras. Loaded again when the file changes.",
                    [host.LORAS],
                )
            ],
            outputs=[
                lora_output("The LoRA, for the nodes here and the host's own Load LoRA Model."),
                report_output(),
                *said_outputs(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None) -> str | float:
        """A value that changes with the file, so that the host runs the node again."""
        return fingerprint(lora_name)

    @classmethod
    @explained
    def execute(cls, lora_name: str) -> io.NodeOutput:
        """Read the file.

        Raises:
            FileNotFoundError: There is no such file.
            LoraOpsError: It is damaged, or no adapter; the message says what it is.
        """
        from ...lora_ops import describe

        lora = read(host.file_path(lora_name, host.LORAS))
        told = said_of(lora)
        report = info_text(describe(as_file(lora)), *said_lines(told))
        return reported(report, lora, after=said_values(told, lora.metadata))
