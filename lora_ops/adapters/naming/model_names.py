"""Module names of one model, in every format: where a file's module is, and what a target is called.

`joining` compares names of any models; this knows which model it is, and so how its fused
projections are packed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from ...errors import UnsupportedLayerError
from ...models.architectures import (
    ENCODERS,
    TE,
    UNET,
    Architecture,
    ModelRows,
    Renames,
    is_language_model,
    module_renames,
    naming,
)
from .joining import PROCESSORS, diffusers_encoder, encoder_target, kohya_encoder, spelling_key
from .names import FLAT_PREFIXES, LEFT_OUT, NATIVE_PREFIXES, OF_TRANSFORMER, underscored, within
from .suffixes import BIAS
from .table import COMFY, DIFFUSERS, KOHYA, PEFT, Format

_CLIPS = (f"{TE}clip_", f"{TE}hydit_clip.")
_PEFT = PEFT.prefixes[0]
_SECOND = "transformer_2."
# A module whose name has one of these prefixes, or begins so, has no native name that could stay.
_OPAQUE = (*FLAT_PREFIXES, *OF_TRANSFORMER, "unet.")
_FOREIGN = ("transformer_blocks.", "single_transformer_blocks.")
# An encoder's module in a file: which encoder, and the name within.
_ENCODER_PREFIX = re.compile(
    r"^(?:lora_te(?P<flat>\d?)_|(?P<prior>lora_prior_te_)|text_encoder(?:_(?P<dotted>\d))?\.)"
    r"(?P<inner>.+)$"
)


@dataclass(frozen=True, eq=False)
class ModelNames:
    """The names of one model; from `model_names`.

    Attributes:
        architecture: The model's; None: unknown.
        modules: Names of the diffusion model's modules, native and foreign.
        known: Canonical target by `spelling_key`, of a checkpoint.
        own: What the model itself calls the module, by canonical target; empty where it is not
            known. PEFT finds layers by these names alone.
    """

    architecture: Architecture | None
    modules: Renames
    known: dict[str, str] = field(default_factory=dict[str, str])
    own: Mapping[str, str] = field(default_factory=dict[str, str])

    def place(self, module: str) -> ModelRows | None:
        """Return the rows of the model that a file's module changes, by canonical target.

        None for a name without dots that neither the architecture's table nor the checkpoint has,
        and for one of diffusers that the table does not have.
        """
        if module.endswith(BIAS):
            found = self.place(module.removesuffix(BIAS))
            return None if found is None else replace(found, native=found.native + BIAS)
        if module.startswith((TE, "vae.", _SECOND)):
            return ModelRows(module)
        if module.startswith(_PEFT):
            inner = module.removeprefix(_PEFT)
            target = self._targets.get(inner)
            if target is not None:
                return self._inside(target.removeprefix(_prefix(target))) or ModelRows(target)
            if is_language_model([f"{inner}."]):
                return ModelRows(f"{TE}transformer.{inner}")
        encoder = _ENCODER_PREFIX.match(module)
        if encoder is not None:
            return self._encoder(encoder)
        prefix = _prefix(module)
        inner = module.removeprefix(prefix)
        for pattern, to in PROCESSORS:
            inner = pattern.sub(to, inner)
        found = self._inside(inner)
        if found is not None:
            return found
        known = self.known.get(spelling_key(module))
        if known is not None:
            return self._inside(known.removeprefix(_prefix(known))) or ModelRows(known)
        foreign = inner.startswith(_FOREIGN) or naming([f"{inner}."]) == "diffusers"
        native = prefix.endswith(UNET) or not (prefix in _OPAQUE or foreign)
        return ModelRows(UNET + inner) if native else None

    def spelled(self, format: Format, target: str) -> tuple[tuple[str, ModelRows], ...]:
        """Return the modules of a file in this format that hold a target, and which rows.

        Raises:
            UnsupportedLayerError: The format has no name for it, or no program that reads the
                format can have an adapter there.
        """
        if self.is_unadapted(format, target):
            title = "" if self.architecture is None else self.architecture.title
            raise UnsupportedLayerError(
                f"format `{format.name}` cannot have a layer on `{target}` of {title}: PEFT refuses "
                "the whole file for it; use format `comfy`, or `allow_partial=True`, which leaves it out",
                target=target,
            )
        if target.endswith(BIAS):
            inner = self.spelled(format, target.removesuffix(BIAS))
            return tuple((name + BIAS, replace(at, native=target)) for name, at in inner)
        if format == PEFT:
            return self._own(target)
        return self._spelled(format, target)

    def is_unadapted(self, format: Format, target: str) -> bool:
        """Whether PEFT, which alone reads this format, cannot adapt a module of the model."""
        pattern = "" if self.architecture is None else self.architecture.unadapted
        read_by_peft = format in (DIFFUSERS, PEFT)
        return read_by_peft and bool(pattern and re.search(pattern, target.removesuffix(BIAS)))

    def _own(self, target: str) -> tuple[tuple[str, ModelRows], ...]:
        """The modules of a PEFT file, by the model's own names where these are known."""
        name = self.own.get(target)
        if name is None and target.startswith(_CLIPS):
            # Two spellings are in use, with and without `text_model.`.
            raise UnsupportedLayerError(
                f"format `peft` has no name for `{target}` that every version of the model has; "
                "give the folder that PEFT is to load the model from as `reference=`",
                target=target,
            )
        found = (
            self._spelled(PEFT, target) if name is None else ((_PEFT + name, ModelRows(target)),)
        )
        for module, _ in found if self.own else ():
            if module.removeprefix(_PEFT) not in self._targets:
                raise UnsupportedLayerError(
                    f"format `peft` has no name for `{target}`: the model that is given has no "
                    f"module `{module.removeprefix(_PEFT)}`, and PEFT would not find it; give the "
                    "folder that PEFT is to load the model from",
                    target=target,
                )
        return found

    @cached_property
    def _targets(self) -> dict[str, str]:
        """Canonical target by the model's own name."""
        return {name: target for target, name in self.own.items()}

    def _spelled(self, format: Format, target: str) -> tuple[tuple[str, ModelRows], ...]:
        if not target.startswith(UNET):
            return ((self._elsewhere(format, target), ModelRows(target)),)
        inner = target.removeprefix(UNET)
        known = self.architecture is not None and self.architecture.diffusers is not None
        there = self.modules.foreign_parts(inner) if known else ()
        foreign = tuple((name, replace(at, native=target)) for name, at in there)
        if format == DIFFUSERS and not foreign:
            raise _no_name(format, target, self.architecture)
        parts = foreign if foreign and self._is_foreign(format) else ((inner, ModelRows(target)),)
        return tuple((self._written(format, name), at) for name, at in parts)

    def packing(self, target: str) -> tuple[ModelRows, ...]:
        """Return the rows of a target that diffusers has in modules of their own; () if unknown."""
        inner = target.removesuffix(BIAS).removeprefix(UNET)
        return tuple(at for _, at in self.modules.foreign_parts(inner))

    def _inside(self, inner: str) -> ModelRows | None:
        found = self.modules.find(inner)
        return None if found is None else replace(found, native=UNET + found.native)

    def _is_foreign(self, format: Format) -> bool:
        """Whether a format has diffusers' names of the diffusion model."""
        kohya = None if self.architecture is None else self.architecture.kohya
        if format == KOHYA:
            return kohya is not None and kohya.unet == "diffusers"
        return format in (DIFFUSERS, PEFT)

    def _written(self, format: Format, name: str) -> str:
        if format == KOHYA:
            return "lora_unet_" + underscored(name)
        root = "" if self.architecture is None else self.architecture.diffusers or ""
        return {COMFY.name: UNET, PEFT.name: _PEFT, DIFFUSERS.name: root}[format.name] + name

    def _encoder(self, match: re.Match[str]) -> ModelRows | None:
        inner = match["inner"]
        spellings = (inner, *(root + inner for root in LEFT_OUT))
        found = next((at for one in spellings if (at := ENCODERS.find(one)) is not None), None)
        if found is None and "." not in inner:
            return None
        # Stable Cascade has one encoder, which is the second one in other models.
        second = match["prior"] is not None or "2" in (match["flat"], match["dotted"])
        v2 = self.architecture is not None and self.architecture.v2
        name = inner if found is None else found.native
        return ModelRows(encoder_target(second, name, "clip_h" if v2 else "clip_l"))

    def _elsewhere(self, format: Format, target: str) -> str:
        """The name of a target of a text encoder, or of a second diffusion model."""
        encoders = {
            COMFY.name: target,
            KOHYA.name: kohya_encoder(target, self.architecture),
            DIFFUSERS.name: diffusers_encoder(target),
            PEFT.name: _PEFT + within(target),
        }
        home = DIFFUSERS if target.startswith(_SECOND) else COMFY
        own = target if format == home else None
        name = encoders.get(format.name) if target.startswith(TE) else own
        if name is None:
            raise _no_name(format, target, self.architecture)
        return name


def model_names(architecture: Architecture | None, reference: Collection[str] = ()) -> ModelNames:
    """Return the names of a model.

    Args:
        architecture: The model's; None: unknown.
        reference: Canonical targets of a checkpoint, which have the layout of a UNet and the dots
            of names that no table has. As a mapping, with what the model itself calls the module of
            each.
    """
    own = reference if isinstance(reference, Mapping) else {}
    inside = [name.removeprefix(UNET) for name in reference if name.startswith(UNET)]
    known = {spelling_key(name): name for name in reference}
    return ModelNames(architecture, module_renames(architecture, inside), known, own)


def _prefix(module: str) -> str:
    """The longest prefix that a loader takes before a module's own name; it may be empty."""
    prefixes = (*NATIVE_PREFIXES, *FLAT_PREFIXES)
    return max((one for one in prefixes if module.startswith(one)), key=len)


def _no_name(
    format: Format, target: str, architecture: Architecture | None
) -> UnsupportedLayerError:
    title = "an unknown architecture" if architecture is None else architecture.title
    way = "leave it out" if format == COMFY else "use format `comfy`, or leave it out"
    return UnsupportedLayerError(
        f"format `{format.name}` has no name for `{target}` of {title}; {way}", target=target
    )
