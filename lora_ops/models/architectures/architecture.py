"""What an architecture is: how to know it, and what the tools of the trade call it. Data only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from ..parameter import Parameter
from .renames import Packing
from .unet_blocks import Layout

UNET = "diffusion_model."

Sizes: TypeAlias = "Mapping[str, tuple[tuple[int | None, int | None], ...]]"
"""Published shapes (out, in) by the end of a module's native name; None for one that varies."""


@dataclass(frozen=True, slots=True)
class Size:
    """A parameter that fits the pattern must have this size along an axis; one is enough."""

    pattern: str
    axis: int
    size: int


@dataclass(frozen=True, slots=True)
class Condition:
    """What a model's parameters must be called and how large they must be.

    Names are relative to ``root`` and may hold shell wildcards.
    """

    has_all: tuple[str, ...] = ()
    has_any: tuple[str, ...] = ()
    has_none: tuple[str, ...] = ()
    sizes: tuple[Size, ...] = ()
    root: str = UNET

    def holds(self, parameters: Mapping[str, Parameter]) -> bool:
        """Whether parameters, given by canonical name, meet all of the condition."""
        return (
            all(self._present(name, parameters) for name in self.has_all)
            and (not self.has_any or any(self._present(name, parameters) for name in self.has_any))
            and not any(self._present(name, parameters) for name in self.has_none)
            and all(self._sized(size, parameters) for size in self.sizes)
        )

    def _present(self, pattern: str, parameters: Mapping[str, Parameter]) -> bool:
        return any(True for _ in self._matching(pattern, parameters))

    def _sized(self, size: Size, parameters: Mapping[str, Parameter]) -> bool:
        return any(
            len(parameter.shape) > size.axis and parameter.shape[size.axis] == size.size
            for parameter in self._matching(size.pattern, parameters)
        )

    def _matching(self, pattern: str, parameters: Mapping[str, Parameter]) -> Iterable[Parameter]:
        full = self.root + pattern
        if "*" not in pattern:
            return [parameters[full]] if full in parameters else []
        return (value for name, value in parameters.items() if fnmatchcase(name, full))


@dataclass(frozen=True, slots=True)
class Kohya:
    """How kohya's scripts name the targets of an architecture.

    Attributes:
        unet: Which names follow ``lora_unet_``: native or diffusers'.
        encoders: Prefix of each text encoder.
    """

    unet: Literal["native", "diffusers"]
    encoders: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """A family of models whose parameters have the same names.

    Attributes:
        name: Short name, stable.
        title: Name for people.
        recognise: Conditions on a checkpoint; one that holds is enough.
        blocks: Evidence for `recognise_layers`: numbers of blocks that published models have, by
            the part of a native name before the number; a higher number rules the model out.
        sizes: Evidence: shapes that published models have.
        also: Evidence: names of its modules beyond ``packings``, natively or in diffusers, which
            no table translates.
        foreign_only: Evidence: whether only diffusers runs it; native names are a relative's then.
        mark: Evidence: regular expression that a flattened name of the file must match; without one
            the file is of another model. Empty: none is needed.
        second_clip: Evidence: whether CLIP is its second text encoder.
        family: Short name of the first of the models that share all names and shapes.
        variant_of: Short name of a far commoner model that has these names, and more: a file counts
            as one of that model, unless it has a name, or all blocks, of this one alone.
        modelspec: ``modelspec.architecture`` without ``/lora``; None where none is established.
        base_model_version: ``ss_base_model_version``; None where none is established.
        network_module: ``ss_network_module`` of the trainer for this family.
        v2: ``ss_v2``: Stable Diffusion 2.
        kohya: How kohya names its targets; None where lorakit does not write them.
        diffusers: What stands before diffusers' names of its modules in an adapter; None where
            these are not known.
        packings: Its modules, natively and in diffusers; those of a UNet follow from its layout.
        layout: The blocks of the published UNet; None for other models.
        parameters: Its other parameters, by whole names: those of no module, and those of modules
            that no adapter has. Swapped ones are so whatever their shape.
        fused: Modules that diffusers alone has fused: its name of each, and the native modules that
            its rows are.
        unadapted: Regular expression of native names of modules that PEFT refuses in diffusers'
            model, for they are of a kind of their own there. Empty: none.
    """

    name: str
    title: str
    recognise: tuple[Condition, ...]
    blocks: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    sizes: Sizes = field(default_factory=dict[str, "tuple[tuple[int | None, int | None], ...]"])
    also: tuple[str, ...] = ()
    foreign_only: bool = False
    mark: str = ""
    second_clip: bool = False
    family: str = ""
    variant_of: str = ""
    modelspec: str | None = None
    base_model_version: str | None = None
    network_module: str = "networks.lora"
    v2: bool = False
    kohya: Kohya | None = None
    diffusers: str | None = None
    packings: tuple[Packing, ...] = ()
    layout: Layout | None = None
    parameters: tuple[Packing, ...] = ()
    fused: tuple[Packing, ...] = ()
    unadapted: str = ""
