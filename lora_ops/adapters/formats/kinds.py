"""The kinds of layers a file can hold: their names, their roles, and what is built of them. Data."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor

from ...errors import LayerShapeError, LoraOpsError, QuantisedError, UnsupportedLayerError
from ...source import TensorSource
from ..layers import (
    GAINS_OF_WHAT,
    AdaLoraLayer,
    BiasGainsLayer,
    BoftLayer,
    DoraLayer,
    FullLayer,
    GloraLayer,
    Ia3Layer,
    Initial,
    InputButterflyLayer,
    InputRotationLayer,
    Layer,
    LohaLayer,
    LokrLayer,
    LoraLayer,
    NewRowsLayer,
    OftLayer,
    PeftIa3Layer,
    PissaLayer,
    ReplacementLayer,
    ReshapedLayer,
    VeraLayer,
)
from ..naming.suffixes import Module, is_turned
from ..naming.table import COMFY, KOHYA
from ..peft.config import PEFT_METADATA, Configured

BOFT = "boft"
"""Blocks of four axes: by its keys alone it is an ``oft``."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of layer. Its roles are the names of the constructor's arguments.

    Attributes:
        title: What people call it.
        build: The constructor.
        needs: Roles without which a layer is incomplete.
        takes: Roles that it may have besides.
        has_alpha: Whether an alpha belongs to it.
        formats: Names of those whose loaders know the kind, besides that of the file it came from.
        spelled: The kind in `naming.suffixes` whose keys it has; empty: the one of its own name.
    """

    title: str
    build: Callable[..., Layer]
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()
    has_alpha: bool = True
    formats: tuple[str, ...] = ()
    spelled: str = ""

    @property
    def roles(self) -> frozenset[str]:
        """All roles that a layer of this kind can have of its own."""
        return frozenset((*self.needs, *self.takes, *(("alpha",) if self.has_alpha else ())))


_BOTH = (KOHYA.name, COMFY.name)
KINDS: dict[str, Kind] = {
    "lora": Kind("LoRA", LoraLayer, ("up", "down"), ("mid",)),
    "loha": Kind("LoHa", LohaLayer, ("w1_a", "w1_b", "w2_a", "w2_b"), ("t1", "t2"), formats=_BOTH),
    # Which roles it needs depends on those that are there: the layer itself checks.
    "lokr": Kind(
        "LoKr", LokrLayer, (), ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"), formats=_BOTH
    ),
    "glora": Kind("GLoRA", GloraLayer, ("a1", "a2", "b1", "b2"), formats=_BOTH),
    "oft": Kind("OFT", OftLayer, ("blocks",), ("rescale",), formats=_BOTH),
    BOFT: Kind("BOFT", BoftLayer, ("blocks",), ("rescale",), formats=_BOTH, spelled="oft"),
    "oft_r": Kind(
        "OFT of the inputs", InputRotationLayer, ("numbers",), ("scaled",), has_alpha=False
    ),
    "boft_r": Kind(
        "BOFT of the inputs", InputButterflyLayer, ("stages", "row_gains"), has_alpha=False
    ),
    "adalora": Kind("AdaLoRA", AdaLoraLayer, ("left", "right", "values"), has_alpha=False),
    # The two matrices that all layers share are in no layer's keys; see `_shared`.
    "vera": Kind("VeRA", VeraLayer, ("out_gains", "inner_gains"), has_alpha=False),
    "ia3": Kind("IA3", Ia3Layer, ("weight", "on_input"), has_alpha=False, formats=(KOHYA.name,)),
    "ia3_l": Kind("IA3 of PEFT", PeftIa3Layer, ("gains",), has_alpha=False),
    # It has no key of its own in a file; see `bias_of`.
    "ia3_bias": Kind("IA3 of PEFT, of the bias", BiasGainsLayer, ("gains",), has_alpha=False),
    "full": Kind("full difference", FullLayer, ("diff",), has_alpha=False),
    "set": Kind(
        "replacement", ReplacementLayer, ("set_weight",), has_alpha=False, formats=(COMFY.name,)
    ),
    "rows": Kind("new tokens", NewRowsLayer, ("rows",), has_alpha=False),
}
#: The matrices of VeRA that all layers of a file share, by their role.
VERA_SHARED = {"up": "base_model.vera_B", "down": "base_model.vera_A"}
# What may stand beside a layer of any kind and changes what it means.
MAGNITUDES = ("dora_scale", "magnitude")
RESHAPE = "reshape_weight"
# Where PEFT's configuration is, besides `PEFT_METADATA`.
ADAPTER_CONFIG = "adapter_config.json"
# Terms of the series for a rotation: PEFT's default, which is OneTrainer's; the most that are read.
_TERMS, _MOST_TERMS = 5, 100
# Roles whose numbers are counts or flags, not weights.
_INTEGERS = ("on_input", "scaled", RESHAPE)


def title_of(kind: str) -> str:
    """What people call a kind; the word itself where none is defined, as for `mixed`."""
    return KINDS[kind].title if kind in KINDS else kind


def kind_of(source: TensorSource, module: Module) -> str:
    """Name the kind of a module, by its keys and, where these say too little, its shapes."""
    if module.kind == "oft" and "blocks" in module.keys:
        return BOFT if len(source.shape(module.keys["blocks"])) == 4 else module.kind
    return module.kind


def read_configured(
    source: TensorSource, name: str, module: Module, told: Configured | None
) -> Layer:
    """Read the layer of one module as the file's configuration means it; see `read_kind`.

    Raises:
        LayerShapeError: It has initial factors that its shape cannot have.
        UnsupportedLayerError: It needs a configuration, and there is none.
    """
    layer = read_kind(source, name, module, None if told is None else told.scale)
    if isinstance(layer, PeftIa3Layer):
        layer = replace(layer, on_input=None if told is None else told.on_input)
        if layer.axis is None:
            message = f"layer `{name}`: {GAINS_OF_WHAT}"
            raise UnsupportedLayerError(message, target=name, path=source.name)
    if told is None:
        return layer
    if isinstance(layer, NewRowsLayer):
        return replace(layer, tokens=told.tokens)
    if told.initial is None:
        return layer
    try:
        return _begun(layer, told.initial)
    except LayerShapeError as error:
        message = f"layer `{name}`: {error}"
        raise LayerShapeError(message, target=name, path=source.name) from None


def bias_of(layer: Layer, module: Module) -> Module | None:
    """Return what a layer does to the bias beside its weight, as a module; None for nothing."""
    return None if layer.bias is None else Module("ia3_bias", {"gains": module.keys["gains"]})


def _begun(layer: Layer, initial: Initial) -> Layer:
    """The layer as PiSSA or OLoRA: its change is counted from the factors it began with."""
    if isinstance(layer, DoraLayer):
        return replace(layer, inner=_begun(layer.inner, initial))
    return PissaLayer(layer, initial) if isinstance(layer, LoraLayer) else layer


def read_kind(source: TensorSource, name: str, module: Module, scale: float | None = None) -> Layer:
    """Read the layer of one module, whatever its kind.

    Args:
        source: The adapter file.
        name: The module's name, for messages.
        module: Its keys.
        scale: Scale of a layer that stores no alpha, and of the bias of an up.

    Raises:
        UnsupportedLayerError: The module is of two kinds, or has a key that belongs to none.
        LayerShapeError: A factor is missing, or they do not fit together.
        QuantisedError: The factors are integers, so they stand for other numbers.
    """
    known = kind_of(source, module)
    around = (*MAGNITUDES, RESHAPE)
    kind = KINDS.get(known)
    odd = module.keys.keys() - (kind.roles | {*around} if kind else ())
    if module.is_table:  # the magnitudes would lie along the other axis
        odd |= module.keys.keys() & {*around}
    if kind is None or odd:
        raise unsupported(source, name, module, known, odd if kind else ())
    for role in kind.needs:
        if role not in module.keys:
            there = ", ".join(f"`{key}`" for key in module.keys.values())
            raise LayerShapeError(
                f"layer `{name}` has no {role} factor, only {there}; the file is incomplete",
                target=name,
                path=source.name,
            )
    tensors = {
        role: _numbers(source, name, role, key)
        for role, key in module.keys.items()
        if role != "alpha"
    }
    alpha = read_alpha(source, module.keys["alpha"]) if "alpha" in module.keys else None
    try:
        own = {role: tensors[role] for role in tensors.keys() - {*around}}
        own |= _shared(source, name) if known == "vera" else {}
        layer = kind.build(**own, **({"alpha": alpha} if alpha is not None else {}))
        if isinstance(layer, InputRotationLayer):
            layer = replace(layer, terms=_series(source, name))
        return _surrounded(layer if scale is None else layer.at_scale(scale), tensors)
    except LayerShapeError as error:
        message = f"layer `{name}`: {error}"
        raise LayerShapeError(message, target=name, path=source.name) from None


def unsupported(
    source: TensorSource, name: str, module: Module, kind: str, odd: Iterable[str]
) -> LoraOpsError:
    """The error for a layer that cannot be read, with the keys that are in the way."""
    keys = ", ".join(f"`{module.keys[role]}`" for role in sorted(odd))
    holds = f" with {keys}" if keys else ""
    return UnsupportedLayerError(
        f"layer `{name}` is of kind {title_of(kind)}{holds}, which cannot be read as a LoRA layer; "
        "leave the file out, or bake it with a program that knows the kind",
        target=name,
        path=source.name,
    )


def read_alpha(source: TensorSource, key: str) -> float:
    """Read an alpha: one number, of any dtype, with or without an axis.

    Raises:
        LayerShapeError: It is not one number, or a complex one.
    """
    shape, element = source.shape(key), source.element(key)
    if any(size != 1 for size in shape):
        raise LayerShapeError(f"alpha `{key}` is {shape}, not one number", path=source.name)
    if element.is_complex:
        message = f"alpha `{key}` is torch.{element.title}, not one real number"
        raise LayerShapeError(message, path=source.name)
    return source.number(key)


def _numbers(source: TensorSource, name: str, role: str, key: str) -> Tensor:
    element = source.element(key)
    if role not in _INTEGERS and not element.is_floating_point:
        raise QuantisedError(
            f"layer `{name}`: `{key}` is stored as torch.{element.title}, not as plain numbers; use "
            "the file it was quantised from",
            target=name,
            path=source.name,
        )
    tensor = source.tensor(key)
    return tensor.mT if is_turned(key) else tensor


def inner_size(source: TensorSource, module: Module) -> int:
    """Return what a LoRA's alpha is divided by, from the shape of its down factor."""
    return source.shape(module.keys["down"])[1 if module.is_table else 0]


def _series(source: TensorSource, name: str) -> int:
    """Terms of the series for a rotation, from PEFT's configuration; 0: the exact rotation.

    Raises:
        UnsupportedLayerError: PEFT bounds the rotations at each use, which the file does not hold.
    """
    texts = (source.metadata.get(entry, "{}") for entry in (PEFT_METADATA, ADAPTER_CONFIG))
    with contextlib.suppress(ValueError, RecursionError):
        for read in map(json.loads, texts):
            config = cast("dict[str, object]", read) if isinstance(read, dict) else {}
            if config.get("coft") is True:
                raise UnsupportedLayerError(
                    f"layer `{name}` is of constrained OFT (`coft`), which is not read; merge it "
                    "with PEFT, and extract a LoRA from the result",
                    target=name,
                    path=source.name,
                )
            if config.get("use_cayley_neumann") is False:
                return 0
            terms = config.get("num_cayley_neumann_terms")
            if isinstance(terms, int) and 0 < terms <= _MOST_TERMS:
                return terms
    return _TERMS


def _shared(source: TensorSource, name: str) -> dict[str, Tensor]:
    """The two matrices of a file of VeRA.

    Raises:
        UnsupportedLayerError: They are not in it: PEFT draws them anew at each loading.
    """
    if not {*VERA_SHARED.values()} <= {*source.keys()}:
        raise UnsupportedLayerError(
            f"layer `{name}` is of VeRA, whose two matrices are not in the file: PEFT draws them at each loading; "
            "save it with them (`save_projection`)",
            target=name,
            path=source.name,
        )
    return {role: source.tensor(key) for role, key in VERA_SHARED.items()}


def _surrounded(layer: Layer, tensors: Mapping[str, Tensor]) -> Layer:
    """The layer with magnitudes over it, and a larger weight under it, where the file has them."""
    found = [role for role in MAGNITUDES if role in tensors]
    if len(found) > 1:
        raise LayerShapeError(f"it has {' and '.join(found)}: magnitudes can be there once")
    for role in MAGNITUDES:
        if role in tensors:
            layer = DoraLayer(layer, tensors[role], role)
    return ReshapedLayer(layer, tensors[RESHAPE]) if RESHAPE in tensors else layer
