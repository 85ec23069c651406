"""Extract Control-LoRA: from a ControlNet's file and that of its base to a file, and to a ControlNet in use."""

from __future__ import annotations

from ..form.schema import (
    dtype_of,
    file_input,
    path_output,
    prefix_input,
    rank_inputs,
    report_output,
    reported,
    rule_of,
    schema,
)
from ..form.texts import edit_text
from ..form.wording import explained
from ..host import host, model_files
from ..host.api import io
from .extraction import NO_RANK, exact_input, stored_input

BASES = (host.CHECKPOINTS, host.DIFFUSION_MODELS)
_PREFIX = "controlnet/lorakit"


class ExtractControlLora(io.ComfyNode):
    """Extracts from two files of the host's lists, writes the file, and loads it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "ExtractControlLora",
            "Extract Control-LoRA",
            description="A ControlNet as what it adds to the UNet of its checkpoint: a file of a fraction of the size, "
            "which the host's Load ControlNet Model reads. SD1.5, SD2 and SDXL.",
            search_aliases=["control lora", "controlnet", "shrink controlnet", "ControlLoraSave"],
            is_output_node=True,
            inputs=[
                file_input(
                    "controlnet_name", "The ControlNet. It is not changed.", [host.CONTROLNETS]
                ),
                file_input(
                    "base_name", "The checkpoint that the ControlNet was trained on.", BASES
                ),
                *rank_inputs(default=0, noise=True, none=NO_RANK),
                prefix_input(_PREFIX),
                exact_input(),
                stored_input("all of it is"),
            ],
            outputs=[
                io.ControlNet.Output(
                    display_name="control_net", tooltip="The Control-LoRA, loaded from the file."
                ),
                path_output(),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, controlnet_name: str | None, base_name: str | None, **rest: object
    ) -> tuple[str, ...]:
        """A value that changes with the files, so that the host runs the node again."""
        del rest
        return (
            host.fingerprint(controlnet_name, host.CONTROLNETS),
            host.fingerprint(base_name, *BASES),
        )

    @classmethod
    @explained
    def execute(
        cls,
        controlnet_name: str,
        base_name: str,
        rank: int,
        prefix: str,
        rule: str | None = None,
        exact: bool = False,
        dtype: str = "fp16",
    ) -> io.NodeOutput:
        """Extract it, and write the file.

        Raises:
            FileNotFoundError: A file is not in the host's folders.
            LoraOpsError: The two do not belong together, it is no ControlNet of a UNet, nothing differs, the
                rule is wrong, or the disk is full.
        """
        from ...lora_ops import extract_control_file, open_source, plan_control_file
        from ...version import __version__

        path = host.output_path(prefix, _PREFIX)
        with (
            open_source(host.file_path(base_name, *BASES)) as base,
            open_source(host.file_path(controlnet_name, host.CONTROLNETS)) as controlnet,
        ):
            planned = plan_control_file(
                base, controlnet, rule_of(rank, rule), output=path, dtype=dtype_of(dtype)
            )
            report = extract_control_file(
                *(planned, base, controlnet, path),
                exact=exact,
                placement=host.placement(),
                version=__version__,
                progress=host.progress(),
            )
        return reported(
            edit_text(path.name, report), model_files.loaded_controlnet(path), str(path)
        )
