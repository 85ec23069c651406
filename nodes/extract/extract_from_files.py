"""Extract LoRA from files: two checkpoints, streamed; nothing is loaded into the host's memory."""

from __future__ import annotations

from ..form.activations import NONE, activations_fingerprint, activations_input
from ..form.schema import file_input, lora_output, report_output, reported, schema
from ..form.wording import explained
from ..host import host
from ..host.api import io
from .extraction import extracted, extraction_inputs, kind_inputs, partial_input

FOLDERS = (host.CHECKPOINTS, host.DIFFUSION_MODELS)


class ExtractFromFiles(io.ComfyNode):
    """Extracts from two files of the host's lists."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "ExtractLoraFromFiles",
            "Extract LoRA from Files",
            description="The LoRA that takes the base checkpoint closest to the tuned one. Both are "
            "read tensor by tensor, so models larger than the memory can be compared.",
            search_aliases=[
                "lora extract",
                "svd",
                "checkpoint difference",
                "extract from checkpoint",
                "gguf",
            ],
            inputs=[
                file_input("tuned_name", "The checkpoint that the LoRA should lead to.", FOLDERS),
                file_input("base_name", "The checkpoint that it starts from.", FOLDERS),
                *extraction_inputs(files=True),
                partial_input(),
                *kind_inputs(),
                activations_input(),
            ],
            outputs=[lora_output("The extracted LoRA."), report_output()],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        tuned_name: str | None,
        base_name: str | None,
        activations: str | None = NONE,
        **rest: object,
    ) -> tuple[str | float, ...]:
        """A value that changes with the files, so that the host runs the node again."""
        del rest
        files = (host.fingerprint(name, *FOLDERS) for name in (tuned_name, base_name))
        return *files, activations_fingerprint(activations)

    @classmethod
    @explained
    def execute(
        cls,
        tuned_name: str,
        base_name: str,
        rank: int,
        rule: str | None = None,
        exact: bool = False,
        full_differences: bool = False,
        allow_partial: bool = False,
        dtype: str = "fp16",
        format: str = "comfy",
        kind: str = "lora",
        factor: int = -1,
        activations: str = NONE,
    ) -> io.NodeOutput:
        """Extract it.

        Raises:
            FileNotFoundError: A file is not in the host's folders.
            LoraOpsError: The two do not belong together, nothing differs, or the rule is wrong.
        """
        from ...lora_ops import open_source

        with (
            open_source(host.file_path(base_name, *FOLDERS)) as base,
            open_source(host.file_path(tuned_name, *FOLDERS)) as tuned,
        ):
            report, lora = extracted(
                base,
                tuned,
                host.Path(tuned_name).stem,
                rank=rank,
                rule=rule,
                exact=exact,
                full_differences=full_differences,
                allow_partial=allow_partial,
                dtype=dtype,
                format=format,
                kind=kind,
                factor=factor,
                activations=activations,
            )
        return reported(report, lora)
