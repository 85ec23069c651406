"""What a ControlNet and its base have in common, and the refusal of pairs that have not enough of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ...adapters.checkpoint import check_checkpoint, is_controlnet
from ...adapters.formats import modules, recognise
from ...errors import MismatchError, WeightShapeError
from ...files import FileSource, JoinedSource
from ...models.architectures import UNET, Architecture, Parameter, detect, parameters
from ...models.control import OWN, SHARED, control_names
from ...source import TensorSource

#: A tensor in a file: which file, and its key there.
Route: TypeAlias = "tuple[FileSource, str]"

_HINT, _ZERO = "input_hint_block.0.weight", "zero_convs.0.0.weight"
# Of ControlNets for several sorts of images at once: which of them an image is, and what that changes.
_UNION = ("task_embedding", "transformer_layes.", "spatial_ch_projs.", "control_add_embedding.")
# In a file of a ControlNet that holds its encoder as the difference from the base.
_DIFFERENCE = "difference"
_UNETS = "Stable Diffusion 1, 2 and XL"


@dataclass(frozen=True, slots=True, eq=False)
class ControlSides:
    """A ControlNet against the UNet that it was made from, both under the UNet's names.

    Attributes:
        base: The encoder of the UNet, and nothing else.
        tuned: The ControlNet's copy of it.
        own: The ControlNet's own parameters, by native name.
    """

    base: FileSource
    tuned: FileSource
    own: Mapping[str, Route]


def control_sides(base: FileSource, controlnet: FileSource) -> ControlSides:
    """Match a ControlNet with its base, from headers alone.

    Args:
        base: A checkpoint with a UNet, under native names or those of diffusers.
        controlnet: The ControlNet, likewise.

    Raises:
        MismatchError: It is no ControlNet of a UNet, or one that a Control-LoRA cannot hold; or it is for
            another model.
        WeightShapeError: It is for a model of other widths.
        QuantisedError: A side is stored in a way that is not read.
    """
    names = _of_controlnet(controlnet)
    encoder = encoder_of(base)
    _check_match(base, encoder, controlnet, names)
    shared = [name for name in names if name.startswith(SHARED)]
    return ControlSides(
        view(base.name, {UNET + name: (base, encoder[name].key) for name in shared}),
        view(controlnet.name, {UNET + name: (controlnet, names[name]) for name in shared}),
        {name: (controlnet, key) for name, key in names.items() if name.startswith(OWN)},
    )


def view(name: str, routes: Mapping[str, Route]) -> FileSource:
    """Return tensors of files under other names, as a source of that name."""
    return JoinedSource(name, routes)


def encoder_of(base: TensorSource) -> dict[str, Parameter]:
    """Return the parameters of a UNet's encoder by native name, without the model's.

    Raises:
        MismatchError: It is no checkpoint, or none with such a UNet.
        QuantisedError: It is stored in a way that is not read.
    """
    check_checkpoint(base, "give the checkpoint with the UNet first")
    known = parameters(base)
    inside = {name.removeprefix(UNET): one for name, one in known.items() if name.startswith(UNET)}
    found = {name: one for name, one in inside.items() if name.startswith(SHARED)}
    mark = recognise(modules(base.keys()))
    if "input_blocks.0.0.weight" not in found or is_controlnet(base):
        model = detect(known)
        what = f"a model of {model.title}" if model is not None else "something else"
        what = f"{mark.article} {mark.title}" if mark is not None else what
        raise MismatchError(
            f"{base.name} holds no UNet of {_UNETS}, but {what}: a Control-LoRA stands on the "
            "checkpoint that its ControlNet was trained on; give that first"
        )
    return found


def _of_controlnet(source: FileSource) -> dict[str, str]:
    """The keys of a ControlNet by native name."""
    _check_kind(source)
    names = control_names(source.keys())
    if _DIFFERENCE in source.keys():  # noqa: SIM118
        raise MismatchError(
            f"{source.name} holds its encoder as the difference from another checkpoint "
            f"(`{_DIFFERENCE}`); give the ControlNet itself"
        )
    union = next((name for name in names if name.startswith(_UNION)), None)
    if union is not None:
        raise MismatchError(
            f"{source.name} is a union ControlNet (`{union}`), for several sorts of images: ComfyUI reads "
            "no such parts from a Control-LoRA; use it as it is"
        )
    if _HINT not in names or _ZERO not in names:
        raise MismatchError(
            f"{source.name} is a ControlNet of another sort of model than {_UNETS}, such as Flux, SD3 or "
            "Qwen-Image: ComfyUI reads Control-LoRAs of these UNets alone; use it as it is"
        )
    strange = next((name for name in names if not name.startswith((*SHARED, *OWN))), None)
    if strange is not None:
        raise MismatchError(
            f"{source.name} has `{names[strange]}`, which no ControlNet of {_UNETS} has: a Control-LoRA "
            "has no place for it; use it as it is"
        )
    return names


def _check_kind(source: FileSource) -> None:
    """Refuse what is no ControlNet.

    Raises:
        MismatchError: Says what it is, as far as names tell.
    """
    grouped = modules(source.keys())
    mark = recognise(grouped)
    if grouped.is_control:
        raise MismatchError(f"{source.name} is a Control-LoRA already; give the ControlNet")
    if mark is None or mark.title != "ControlNet":
        what = f"is {mark.article} {mark.title}" if mark is not None else "is no ControlNet"
        raise MismatchError(
            f"{source.name} {what}: a Control-LoRA is made of a ControlNet, which has a copy of the "
            "UNet's encoder; give the checkpoint first and the ControlNet second"
        )


def _check_match(
    base: FileSource,
    encoder: Mapping[str, Parameter],
    controlnet: FileSource,
    names: Mapping[str, str],
) -> None:
    """Refuse a ControlNet of another model than the base.

    Raises:
        MismatchError: One has a parameter that the other has not.
        WeightShapeError: A parameter has another shape.
    """
    shapes = {name: controlnet.shape(key) for name, key in names.items() if name.startswith(SHARED)}
    titles = [_model(encoder), _model({n: Parameter(n, n, shape) for n, shape in shapes.items()})]
    of = [f" ({one.title})" if one is not None else "" for one in titles]
    sides = f"{controlnet.name}{of[1]} is for another model than {base.name}{of[0]}"
    way_out = "give the checkpoint that the ControlNet was trained on"
    for name in (name for name in encoder if name not in shapes):
        raise MismatchError(f"{sides}: it has no `{name}`, which the UNet has; {way_out}")
    for name, shape in shapes.items():
        if name not in encoder:
            raise MismatchError(f"{sides}: the UNet has no `{name}`; {way_out}")
        if encoder[name].shape != shape:
            raise WeightShapeError(
                f"{sides}: `{name}` is {shape} in the ControlNet and {encoder[name].shape} in the UNet; {way_out}"
            )


def _model(found: Mapping[str, Parameter]) -> Architecture | None:
    return detect({UNET + name: one for name, one in found.items()})
