"""Record Activations: a MODEL that is recorded while it samples, within a memory."""

from __future__ import annotations

from typing import Any

from ..form.schema import report_output, reported, schema
from ..form.texts import headed
from ..form.wording import explained
from ..host.api import io
from ..host.recording import Recording

RecordingIO = io.Custom("LORAKIT_RECORDING")
_GB = 10**9


class RecordActivations(io.ComfyNode):
    """Hands a model on, recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "RecordActivations",
            "Record Activations",
            description="Records what goes into each layer of a model while it samples, as second moments of the "
            "inputs: they say which directions of the weights the model uses. The pictures stay the same.",
            search_aliases=["activations", "calibration", "gram", "imatrix", "importance matrix"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with. It stays as it is."),
                io.Float.Input(
                    "memory",
                    default=2.0,
                    min=0.01,
                    max=1000.0,
                    step=0.1,
                    tooltip="The most GB that the record takes, on the GPU while it samples and in RAM afterwards. Layers "
                    "for whose whole matrix it is too small get 128 directions or fewer, and the diagonal.",
                ),
                io.Boolean.Input(
                    "across_runs",
                    default=False,
                    optional=True,
                    tooltip="On: what a later run samples, as with another seed or prompt, is added to the record. "
                    "Off: each run begins a new one.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model for the sampler. It is recorded as it runs.",
                ),
                RecordingIO.Output(
                    display_name="recording", tooltip="What is recorded, for Save Activations."
                ),
                report_output(),
            ],
        )

    @classmethod
    @explained
    def execute(cls, model: Any, memory: float, across_runs: bool = False) -> io.NodeOutput:
        """Have it recorded.

        Raises:
            LoraOpsError: The memory is too small, or there is nothing to record.
        """
        recording = Recording(int(memory * _GB), across_runs=across_runs)
        recorded = recording.on(model)
        return reported(_report(recording), recorded, recording)


def _report(recording: Recording) -> str:
    from ...lora_ops.report import counted
    from ...lora_ops.text import human_size

    planned = recording.planned
    if planned is None:
        return ""
    wider = (
        f"{planned.directions} directions and the diagonal"
        if planned.directions
        else "the diagonal"
    )
    return headed(
        f"{counted(len(planned.silent), 'layer')} will be recorded, in {human_size(planned.size)}",
        f"the whole matrix of inputs up to width {planned.full}, {wider} of wider ones",
    )
