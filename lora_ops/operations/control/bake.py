"""The full ControlNet of a Control-LoRA: the encoder of its base, with it in, and its own parts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...adapters.formats import BIAS, CONTROL_MARK, modules
from ...adapters.metadata import Input
from ...adapters.strengths.ingredient import Ingredient
from ...elements import Element
from ...errors import ArgumentError, MismatchError, UnknownFormatError
from ...files import FileSource, check_output
from ...models.architectures import UNET
from ...models.control import OWN, SHARED
from ...parts.carry_out import carry_out
from ...parts.whole import Division, Whole
from ...report import Report
from ...run.devices import place
from ...run.job import Work
from ...run.workers import Progress
from ...source import TensorSource
from ..bake.file import BakedFile, plan_bake_file
from ..bake.plan import BakePlan
from ..bake.preview import preview_bake
from ..preview import Preview
from ..weights.output import SHARD_SIZE
from ..weights.written import tensor_jobs
from .sides import Route, control_sides, encoder_of, view

_SPEC, _TITLE = "modelspec.", "modelspec.title"
_OF_LORA, _OF_NET = "/control-lora", "/controlnet"
# Without these ComfyUI cannot make a ControlNet of it.
_NEEDED = ("input_hint_block.0.weight", "zero_convs.0.0.weight", "middle_block_out.0.weight")
_WEIGHT = ".weight"


def is_control_lora(source: TensorSource) -> bool:
    """Whether a file is a Control-LoRA, by its mark.

    Args:
        source: The file, of which only the header is read.
    """
    return CONTROL_MARK in source.keys()  # noqa: SIM118


def as_lora(control: FileSource) -> FileSource:
    """Return what a Control-LoRA does to the encoder of its base, as a LoRA of the UNet, in ComfyUI's names.

    Factors have scale 1; parameters that it holds whole replace the UNet's. Its own parts are not in it.

    Args:
        control: The Control-LoRA.
    """
    grouped = modules(control.keys())
    routes: dict[str, Route] = {}
    for name, module in grouped.modules.items():
        for role, end in (("up", "lora_B"), ("down", "lora_A")):
            if role in module.keys:
                routes[f"{UNET}{name}.{end}.weight"] = (control, module.keys[role])
    for key in grouped.extras:
        if key.startswith(SHARED) and key.endswith((_WEIGHT, BIAS)):
            routes[f"{UNET}{key.removesuffix(_WEIGHT)}.set_weight"] = (control, key)
    made = view(control.name, routes)
    made.metadata = control.metadata
    return made


def as_pair(
    base: TensorSource, controlnet: TensorSource, control: TensorSource
) -> tuple[FileSource, FileSource, FileSource]:
    """Return a UNet's encoder, a ControlNet's copy of it, and what a Control-LoRA makes of one to reach the other.

    Args:
        base: The checkpoint with the UNet.
        controlnet: The ControlNet.
        control: The Control-LoRA.

    Raises:
        ArgumentError: They are not opened files.
        MismatchError, WeightShapeError: See `control_sides`.
    """
    opened = [one for one in (base, controlnet, control) if isinstance(one, FileSource)]
    if len(opened) < 3:
        raise ArgumentError("a Control-LoRA is compared with opened files; open all three first")
    sides = control_sides(opened[0], opened[1])
    return sides.base, sides.tuned, as_lora(opened[2])


def plan_control_bake_file(
    base: FileSource,
    control: FileSource,
    *,
    output: Path | None = None,
    force: bool = False,
    dtype: torch.dtype | Element | None = None,
) -> BakePlan:
    """Check everything that can be checked before the work begins, and plan it.

    Args:
        base: The checkpoint with the UNet; native names, or those of diffusers.
        control: The Control-LoRA.
        output: Where the ControlNet is to go, `.safetensors`; None: nowhere yet.
        force: Whether the output may replace a file.
        dtype: Of the ControlNet; None: that of the UNet's encoder.

    Raises:
        ArgumentError: The output cannot or must not be written.
        UnknownFormatError: It is no Control-LoRA, or an incomplete one.
        MismatchError: The checkpoint has no UNet that it could be for.
        LoraOpsError: See `plan_bake`.
    """
    if output is not None:
        check_output(output, [*base.paths, *control.paths], force=force)
    keys = control.keys()
    if not is_control_lora(control):
        raise UnknownFormatError(f"{control.name} is no Control-LoRA: it has no `{CONTROL_MARK}`")
    for key in (key for key in _NEEDED if key not in keys):
        raise UnknownFormatError(f"{control.name} has no `{key}`: the file is incomplete")
    encoder = encoder_of(base)
    _check_names(base, control, encoder)
    routes: dict[str, Route] = {name: (base, one.key) for name, one in encoder.items()}
    routes |= {key: (control, key) for key in keys if key.startswith(OWN)}
    begun = view(control.name, routes)
    told = {key: text for key, text in control.metadata.items() if key.startswith(_SPEC)}
    if output is not None and _TITLE in told:
        told[_TITLE] = output.stem
    begun.metadata = {key: text.replace(_OF_LORA, _OF_NET) for key, text in told.items()}
    elements = Counter(base.result_element(one.key) for one in encoder.values())
    return plan_bake_file(
        begun,
        [Ingredient(as_lora(control))],
        dtype=dtype or elements.most_common(1)[0][0],
    )


def preview_control_bake(plan: BakePlan, base: FileSource, output: Path) -> Preview:
    """Return what a bake will do, for people and for machines.

    Args:
        plan: From `plan_control_bake_file`.
        base: The checkpoint with the UNet.
        output: Where to.
    """
    inputs = (Path(base.name).name, Path(plan.checkpoint.name).name)
    return replace(preview_bake(plan, output), inputs=inputs)


def bake_control_file(
    plan: BakePlan,
    base: FileSource,
    control: FileSource,
    output: Path,
    *,
    force: bool = False,
    version: str = "",
    progress: Progress | None = None,
    division: Division | None = None,
) -> Report:
    """Run a plan into the file of a full ControlNet, under native names, and return its report.

    Args:
        plan: From `plan_control_bake_file`, of these two.
        base: The checkpoint with the UNet.
        control: The Control-LoRA.
        output: The ControlNet, `.safetensors`.
        force: Whether the output may replace a file.
        version: Of lorakit, for the record.
        progress: Called after each tensor.
        division: How it is done in parts; None: at once.

    Raises:
        LoraOpsError: See `bake_file`.
    """
    started = time.perf_counter()
    sink = _ControlNetFile(plan, base, control, output, version, force)
    whole = Whole("bake", output, sink, Work(tensor_jobs(plan.tensors), sink.compute))
    return carry_out(whole, place("cpu"), division, started=started, progress=progress)


class _ControlNetFile(BakedFile):
    """The ControlNet, which records what it was made from."""

    def __init__(
        self,
        plan: BakePlan,
        base: FileSource,
        control: FileSource,
        output: Path,
        version: str,
        force: bool,
    ) -> None:
        if not isinstance(plan.checkpoint, FileSource):
            raise ArgumentError("a plan of `plan_control_bake_file` is needed")
        super().__init__(plan, plan.checkpoint, output, SHARD_SIZE, version, force)
        self.sources = [base, control]

    def notes(self, inputs: Sequence[Input]) -> Sequence[str]:
        """Nothing was baked into a ControlNet before it is made."""
        del inputs
        return ()


def _check_names(base: FileSource, control: FileSource, encoder: Collection[str]) -> None:
    """Refuse a Control-LoRA of another model, by its names.

    Raises:
        MismatchError: The UNet has no such layer.
    """
    known = {*encoder} | {name.removesuffix(_WEIGHT) for name in encoder}
    grouped = modules(control.keys())
    whole = [key for key in grouped.extras if key.startswith(SHARED)]
    strange = next((name for name in (*grouped.modules, *whole) if name not in known), None)
    if strange is not None:
        raise MismatchError(
            f"{control.name} is for another model than {base.name}: the UNet has no `{strange}`; give "
            "the checkpoint that its ControlNet was made from"
        )
