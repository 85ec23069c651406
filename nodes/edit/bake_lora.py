"""Bake LoRA: adapters into a checkpoint file, tensor by tensor; nothing is loaded into the host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..form.schema import (
    DTYPES,
    ROUNDINGS,
    dtype_input,
    dtype_of,
    file_input,
    path_output,
    prefix_input,
    report_output,
    reported,
    rounding_input,
    schema,
)
from ..form.several import ingredients_of, keep_whole_input, kept_of, several_inputs
from ..form.storage import STORAGES, storage_input, storage_of
from ..form.texts import baked_text
from ..form.wording import explained, inputs_of
from ..host import host
from ..host.api import io
from ..host.checkpoint_path import checkpoint_path
from ..host.saving import graph_of
from ..merge.merging import report_text
from .add_loras import METHODS as ADDING

if TYPE_CHECKING:
    from ...lora_ops import FileSource, Ingredient

FOLDERS = (host.CHECKPOINTS, host.DIFFUSION_MODELS)
_PREFIX = "checkpoints/lorakit"
SUM = "sum"
# Those of Add LoRAs that work on elements: here the whole weight has room for what they give.
METHODS = {
    SUM: "each times its strength",
    **{
        name: ADDING[name]
        for name in ("ties", "magnitude", "dare", "dare_ties", "della", "breadcrumbs", "sce")
    },
}


class BakeLora(io.ComfyNode):
    """Writes a checkpoint with adapters in its weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "BakeLora",
            "Bake LoRA into Checkpoint",
            description="Writes a checkpoint with LoRAs in its weights: fp32 inside, rounded once, all "
            "other tensors byte for byte. Says how much of each change survived the rounding.",
            search_aliases=["merge lora into checkpoint", "bake lora", "save checkpoint with lora"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                file_input("checkpoint", "What the LoRAs go into. It is not changed.", FOLDERS),
                *several_inputs(1, "1, 0.7"),
                prefix_input(_PREFIX, " In output/checkpoints the loaders list it."),
                dtype_input(),
                io.Boolean.Input(
                    "allow_partial",
                    default=False,
                    optional=True,
                    tooltip="Go on where the checkpoint lacks weights that a LoRA changes; they are "
                    "listed. Off: that is an error.",
                ),
                storage_input(),
                rounding_input(),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="What the LoRAs go into, in place of the file: a loaded model with what is on it.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Text encoders that go with `model`, if any."
                ),
                io.Vae.Input("vae", optional=True, tooltip="A VAE that goes with `model`, if any."),
                *_method_inputs(),
                keep_whole_input("a method but sum"),
            ],
            outputs=[path_output(), report_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None, **rest: object) -> str | float:
        """A value that changes with the checkpoint, so that the host runs the node again."""
        del rest
        return host.fingerprint(checkpoint, *FOLDERS)

    @classmethod
    @explained
    def execute(
        cls,
        checkpoint: str,
        loras: Mapping[str, Mapping[str, Tensor] | None],
        prefix: str,
        strengths: str = "",
        dtype: str = DTYPES[0],
        allow_partial: bool = False,
        storage: str = STORAGES[0],
        rounding: str = ROUNDINGS[0],
        model: Any = None,
        clip: Any = None,
        vae: Any = None,
        method: str = SUM,
        density: float = 0.0,
        seed: int = 0,
        keep_whole: str = "",
    ) -> io.NodeOutput:
        """Bake them.

        Raises:
            FileNotFoundError: The checkpoint is not in the host's folders.
            LoraOpsError: A LoRA changes weights that the checkpoint lacks, the checkpoint is
                quantised in a way that is not read, or the disk is full.
        """
        from ...lora_ops import ArgumentError, bake_file, open_source, plan_bake_file
        from ...version import __version__

        if model is None and not (clip is None and vae is None):
            raise ArgumentError("`clip` and `vae` go with a `model`; connect it, or neither")
        to, number = storage_of(storage), dtype_of(dtype)
        if model is None:
            opened = open_source(host.file_path(checkpoint, *FOLDERS))
        else:
            opened = _loaded(cls, model, clip, vae)
        with opened as source:
            path = checkpoint_path(prefix, _PREFIX, to=to, dtype=number, like=source)
            ingredients, kept = ingredients_of(loras, strengths), kept_of(loras, keep_whole)
            if method != SUM and ingredients:  # of none a method makes nothing, as a sum does
                asked = _Asked(method, density, seed, kept, dtype, to, rounding, allow_partial)
                return reported(_by_method(cls, source, ingredients, path, asked), str(path))
            if kept:
                raise ArgumentError("a sum keeps every LoRA whole: leave `keep_whole` empty")
            plan = plan_bake_file(
                source,
                ingredients,
                output=path,
                dtype=number,
                allow_partial=allow_partial,
                to=to,
                rounding=rounding,
            )
            report = bake_file(plan, source, path, version=__version__, progress=host.progress())
        return reported(baked_text(path.name, report), str(path))


def _loaded(node: type[io.ComfyNode], model: Any, clip: Any, vae: Any) -> FileSource:
    """A loaded model as an opened checkpoint; weights that the host holds quantised are decoded."""
    from ...lora_ops.files.quantised.source import decoded
    from ..host.loaded_checkpoint import LoadedCheckpoint

    return decoded(LoadedCheckpoint("the model", model, clip, vae, graph_of(node)))


class _Asked(NamedTuple):
    """What is asked of a bake that is no sum; see the inputs."""

    method: str
    density: float
    seed: int
    kept: list[int] | None
    dtype: str
    to: str
    rounding: str
    allow_partial: bool


def _by_method(
    node: type[io.ComfyNode],
    source: FileSource,
    ingredients: list[Ingredient],
    path: Path,
    asked: _Asked,
) -> str:
    """Bake by a method on elements; the text of the report."""
    from ...lora_ops import merge_file, plan_merge_file, recipe_of_loras
    from ...version import __version__

    own = {"density": asked.density} if asked.density else {}
    recipe, sources, notes = recipe_of_loras(
        *(source, ingredients, asked.method, own), seed=asked.seed, keep_whole=asked.kept
    )
    dtype = "" if asked.dtype == DTYPES[0] else asked.dtype
    recipe = recipe.with_output(dtype=dtype, rounding=asked.rounding)
    plan = plan_merge_file(
        recipe, sources, output=path, to=asked.to, allow_partial=asked.allow_partial
    )
    report = merge_file(plan, path, version=__version__, progress=host.progress())
    return report_text(path.name, report, plan, notes, inputs_of(node))


def _method_inputs() -> list[io.Input]:
    """How several go together, and what that takes."""
    told = "; ".join(f"{name}: {help}" for name, help in METHODS.items())
    return [
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default=SUM,
            optional=True,
            tooltip="How several LoRAs go together, on the elements of each weight, where all of the result has "
            f"room. {told}.",
        ),
        io.Float.Input(
            "density",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Share of the elements that stays, of methods but sum. 0: the method's own, 0.2 of ties, 1 of sce, "
            "else 0.5.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**53,
            optional=True,
            tooltip="Of what is drawn by chance: dare, dare_ties, della, and rounding with them.",
        ),
    ]
