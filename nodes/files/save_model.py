"""Save Model: a loaded model with its patches as a checkpoint file."""

from __future__ import annotations

from typing import Any

from ..form.schema import (
    DTYPES,
    dtype_input,
    dtype_of,
    path_output,
    prefix_input,
    report_output,
    reported,
    schema,
)
from ..form.storage import STORAGES, storage_input, storage_of
from ..form.texts import WARNS, headed
from ..form.wording import explained, worded
from ..host import host
from ..host.api import io
from ..host.checkpoint_path import checkpoint_path
from ..host.saving import graph_of

_PREFIX = "checkpoints/lorakit"


class SaveModel(io.ComfyNode):
    """Writes a MODEL, and what is connected beside it, tensor by tensor."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "SaveModel",
            "Save Model (lorakit)",
            description="Saves a model with all LoRAs and merges that are on it as a checkpoint file, with CLIP "
            "and VAE where they are connected: patches in fp32, rounded once; what has none byte for byte.",
            search_aliases=[
                *("save checkpoint", "save model", "export checkpoint", "CheckpointSave"),
                *("ModelSave", "merge save", "bake model"),
                *("quantise model", "quantize model", "fp8"),
            ],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Model.Input("model", tooltip="The model. It may have any patches on it."),
                prefix_input(_PREFIX, " In output/checkpoints the loaders list it."),
                dtype_input(),
                storage_input("As input: as they lie in memory, quantised ones quantised."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Text encoders that go into the file, patches too.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="A VAE that goes into the file."),
            ],
            outputs=[path_output(), report_output()],
        )

    @classmethod
    @explained
    def execute(
        cls,
        model: Any,
        prefix: str,
        dtype: str = DTYPES[0],
        storage: str = STORAGES[0],
        clip: Any = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        """Write the file.

        Raises:
            LoraOpsError: A weight is held in a form that cannot be read, or cannot be written as asked, or
                the disk is full.
        """
        from ...lora_ops.report import counted
        from ...lora_ops.text import human_error, human_size
        from ...version import __version__
        from ..host.loaded_checkpoint import LoadedCheckpoint
        from ..host.written_checkpoint import written

        to, number = storage_of(storage), dtype_of(dtype)
        path = checkpoint_path(prefix, _PREFIX, to=to, dtype=number)
        source = LoadedCheckpoint("the model", model, clip, vae, graph_of(cls))
        report = written(
            source,
            path,
            dtype=number,
            to=to or None,
            version=__version__,
            progress=host.progress(),
        )
        computed = sum(one.is_patched for one in source.entries.values())
        what = [name for name, one in (("CLIP", clip), ("VAE", vae)) if one is not None]
        lines = [
            f"{path.name}: {counted(len(source.entries), 'tensor')}, {human_size(path.stat().st_size)}, "
            + " and ".join(["the model", *what]),
            f"{counted(computed, 'weight')} under patches computed in fp32, the others as they lie in memory",
        ]
        if report.layers:
            lines.append(
                f"{counted(len(report.layers), 'weight')} with scales, error {human_error(report.error)}"
            )
        lines += [f"note: {worded(note)}" for note in report.notes]
        lines += [
            f"{counted(count, 'tensor')} left out ({kind}): {reason}"
            for (reason, kind), (count, _) in report.reasons().items()
        ]
        lines += [
            f"{WARNS}`{name}` acts as the model's layers run and is in no weight: left out"
            for name in source.injections
        ]
        return reported(headed(*lines), str(path))
