"""Save Activations: what was recorded while a graph sampled, as a file that extraction can weigh by."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ..form.schema import path_output, prefix_input, report_output, reported, schema
from ..form.texts import headed
from ..form.wording import explained
from ..host import host
from ..host.api import io
from .record_activations import RecordingIO

if TYPE_CHECKING:
    from ...lora_ops import Recorder
    from ..host.recording import Recording

_PREFIX = f"{host.ACTIVATIONS}/lorakit"


class SaveActivations(io.ComfyNode):
    """Writes a record once the sampler is through."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "SaveActivations",
            "Save Activations",
            description="Saves what Record Activations recorded, once the sampler is through, for extractions and "
            "resizes that keep what the model uses; also for `--activations` of the command line.",
            search_aliases=["activations", "calibration", "gram", "imatrix", "importance matrix"],
            is_output_node=True,
            inputs=[
                RecordingIO.Input("recording", tooltip="Of Record Activations."),
                io.AnyType.Input(
                    "after",
                    tooltip="What the sampler gives, latent or image: it makes this node wait for it. Of several "
                    "samplers, the last.",
                ),
                prefix_input(_PREFIX, " In output/activations the nodes list it."),
            ],
            outputs=[
                io.AnyType.Output(
                    display_name="activations",
                    tooltip="The file's name in the lists, for `activations` of Extract LoRA and others.",
                ),
                path_output(),
                report_output(),
            ],
        )

    @classmethod
    @explained
    def execute(cls, recording: Recording, after: Any, prefix: str) -> io.NodeOutput:
        """Write the file.

        Raises:
            LoraOpsError: Nothing was recorded, the prefix leads out of the output folder, or the disk is full.
        """
        from ...lora_ops import MismatchError
        from ...lora_ops.text import human_size

        del after
        recorder = recording.recorder
        if recorder is None or not recorder.counts:
            raise MismatchError(
                "nothing was recorded: the sampler has not run with the model of Record Activations; connect that "
                "model to it and its latent to `after`, and if its result came from the cache, change its seed"
            )
        path = host.output_path(prefix, _PREFIX)
        recorder.save(path)
        headline = (
            f"{path.name}: {_layers(len(recorder.counts))}, up to {max(recorder.counts.values())} rows each, "
            f"{human_size(path.stat().st_size)}, recorded in {recording.calls} calls of the model"
        )
        name = host.listed_name(path, host.ACTIVATIONS)
        unlisted = (
            f"other nodes do not list it: for them let `prefix` begin with {host.ACTIVATIONS}/"
        )
        told = headed(headline, *_lines(recorder), *([unlisted] if name == str(path) else []))
        return reported(told, name, str(path))


def _lines(recorder: Recorder) -> list[str]:
    kinds = {
        "gram": f"the whole matrix, up to width {recorder.full}",
        "sketch": f"{recorder.directions} directions and the diagonal",
        "diagonal": "the diagonal alone",
    }
    forms = Counter(recorder.forms.values())
    lines = [f"{_layers(forms[form])}: {told}" for form, told in kinds.items() if forms[form]]
    silent = recorder.silent
    if silent:
        lines.append(f"nothing went into {_layers(len(silent))}, such as {silent[0]}")
    return lines


def _layers(count: int) -> str:
    from ...lora_ops.report import counted

    return counted(count, "layer")
