"""What lint looks at: a file by its header, sorted and placed once for all checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ...adapters.formats import (
    BIAS,
    CONTROL,
    CONTROL_MARK,
    KINDS,
    ModelNames,
    Module,
    apart_or_whole,
    component,
    configured,
    inner_size,
    kind_of,
    model_names,
    modules,
    read_alpha,
    read_kind,
)
from ...adapters.formats import detect as detect_format
from ...adapters.layers import Layer, innermost
from ...adapters.model import recognised_file
from ...adapters.outline import HeaderOnlySource
from ...errors import LayerShapeError, LoraOpsError
from ...models.architectures import ARCHITECTURES, TE, Architecture, ModelRows
from ...source import TensorSource


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One module of the file.

    Attributes:
        name: Its name in the file.
        keys: By role.
        kind: lora, loha, ...; mixed.
        layer: The layer, without data; None if the tensors make no layer.
        trouble: The error that says why they make none.
        place: Where it is in the model; None if unknown.
        stranger: Title of another model, if the name is of that; else empty.
        rank: The number that alpha is divided by; None for a kind that has none.
        alpha: As stored; None where there is none, or it is not one number.
        scale: The scale that the file means: alpha / rank, or the configuration's, or 1.
        magnitudes: Shape of `dora_scale`; () where there is none.
    """

    name: str
    keys: Mapping[str, str]
    kind: str
    layer: Layer | None
    trouble: LoraOpsError | None
    place: ModelRows | None
    stranger: str
    rank: int | None
    alpha: float | None
    scale: float
    magnitudes: tuple[int, ...] = ()

    @property
    def is_dora(self) -> bool:
        """Whether magnitudes stand beside its factors."""
        return bool({"dora_scale", "magnitude"} & self.keys.keys())

    @property
    def is_up_bias(self) -> bool:
        """Whether it is the bias of a LoRA layer's up, as PEFT trains it."""
        return Module(self.kind, self.keys).is_up_bias

    @property
    def is_incomplete(self) -> bool:
        """Whether a factor is missing that its kind cannot be without."""
        return self.kind in KINDS and not set(KINDS[self.kind].needs) <= self.keys.keys()

    @property
    def stored_scale(self) -> float:
        """Its scale for a program that reads nothing but the tensors."""
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank


@dataclass(frozen=True, eq=False)
class Subject:
    """A file, and what its header says.

    Attributes:
        source: Its tensors; of stacks of experts, those of each expert.
        original: The file as it was given.
        format: kohya, comfy, peft or diffusers: that of most modules; or control-lora.
        possible: Architectures whose names it has, the likeliest first.
        doubt: Titles of the possible models, where it is in doubt which it is for.
        names: Names of the model that it is taken for.
        parts: Its modules, in the order of the file.
        extras: Keys that belong to no layer.
        spelling: The program whose names the file has, if it was read under others.
    """

    source: TensorSource
    original: TensorSource
    format: str
    possible: tuple[Architecture, ...]
    doubt: tuple[str, ...]
    names: ModelNames
    parts: tuple[Part, ...]
    extras: tuple[str, ...]
    spelling: str

    @property
    def is_control(self) -> bool:
        """Whether it is a Control-LoRA."""
        return self.format == CONTROL.name

    @property
    def strange(self) -> tuple[str, ...]:
        """The keys that belong to no layer; of a Control-LoRA those that are no parameters either."""
        if not self.is_control:
            return self.extras
        known = (".weight", BIAS, CONTROL_MARK)
        return tuple(key for key in self.extras if not key.endswith(known))

    @property
    def architecture(self) -> Architecture | None:
        """The model that it is taken for."""
        return self.names.architecture

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """All keys, in the order of the file."""
        return tuple(self.source.keys())

    @cached_property
    def alphas(self) -> tuple[str, ...]:
        """Keys of alphas."""
        return tuple(part.keys["alpha"] for part in self.parts if "alpha" in part.keys)

    @cached_property
    def odd_alphas(self) -> tuple[str, ...]:
        """Keys of alphas that are not one real number."""
        return tuple(
            key
            for key in self.alphas
            if math.prod(self.source.shape(key)) != 1 or self.source.element(key).is_complex
        )

    @cached_property
    def whole_alphas(self) -> tuple[str, ...]:
        """Keys of alphas stored as integers."""
        elements = ((key, self.source.element(key)) for key in self.alphas)
        return tuple(key for key, one in elements if not (one.is_floating_point or one.is_complex))


def subject(
    source: TensorSource, spelling: str = "", architecture: Architecture | None = None
) -> Subject:
    """Sort a file by its header; of its data only alphas are read.

    Args:
        source: The file.
        spelling: The program whose names the file has, if the source reads it under others.
        architecture: Of the model that it is for; None: told by its names and shapes.

    Raises:
        UnknownFormatError: It is no adapter file.
    """
    original, source = source, apart_or_whole(source)
    keys = source.keys()
    format = detect_format(keys, source.name, control=True)
    grouped = modules(keys)
    outline = HeaderOnlySource(source)
    built = {name: _built(outline, name, one) for name, one in grouped.modules.items()}
    found = recognised_file(source, grouped.modules)
    possible = found.possible
    doubt = found.titles if found.certain is None and architecture is None else ()
    names = model_names(architecture or next(iter(possible), None))
    scales = _configured(source, grouped.modules)
    parts: list[Part] = []
    for name, module in grouped.modules.items():
        layer, trouble = built[name]
        alpha = _alpha(source, module)
        rank = innermost(layer).factor_rank if layer is not None else _stored_rank(source, module)
        stored = None if alpha is None or not rank else alpha / rank
        parts.append(
            Part(
                name=name,
                keys=module.keys,
                kind=kind_of(source, module),
                layer=layer,
                trouble=trouble,
                place=names.place(name),
                stranger=_stranger(names, name),
                rank=rank,
                alpha=alpha,
                scale=scales.get(name, 1.0) if stored is None else stored,
                magnitudes=source.shape(module.keys["dora_scale"])
                if "dora_scale" in module.keys
                else (),
            )
        )
    return Subject(
        *(source, original, format, possible, doubt, names, tuple(parts), grouped.extras),
        spelling,
    )


def _built(
    outline: TensorSource, name: str, module: Module
) -> tuple[Layer | None, LoraOpsError | None]:
    keys = {role: key for role, key in module.keys.items() if role != "alpha"}
    try:
        return read_kind(outline, name, Module(module.kind, keys)), None
    except LoraOpsError as error:
        return None, error


def _stored_rank(source: TensorSource, module: Module) -> int | None:
    """The rank of an up and a down that stand with keys which lorakit cannot read as one layer."""
    is_factor = "down" in module.keys and len(source.shape(module.keys["down"])) > 1
    return inner_size(source, module) if is_factor else None


def _alpha(source: TensorSource, module: Module) -> float | None:
    if "alpha" not in module.keys:
        return None
    try:
        alpha = read_alpha(source, module.keys["alpha"])
    except LayerShapeError:
        return None
    return alpha if math.isfinite(alpha) else None


def _configured(source: TensorSource, found: Mapping[str, Module]) -> dict[str, float]:
    try:
        return {name: one.scale for name, one in configured(source, found).items()}
    except LoraOpsError:  # another check reports it
        return {}


def _stranger(names: ModelNames, module: str) -> str:
    """The title of the first other model that has a module, where this one has not."""
    inside = component(module) == "unet" and not module.startswith(TE)
    if names.architecture is None or not inside or has(names, module):
        return ""
    commoner = (one for one in ARCHITECTURES if not one.variant_of)
    others = (one for one in commoner if has(model_names(one), module))
    return next((one.title for one in others), "")


def has(names: ModelNames, module: str) -> bool:
    """Whether the table of a model has a module."""
    return _packed(names, module) is not None


def _packed(names: ModelNames, module: str) -> ModelRows | None:
    """Where a module is in a model, if that has it."""
    place = names.place(module)
    return place if place is not None and names.packing(place.native) else None
