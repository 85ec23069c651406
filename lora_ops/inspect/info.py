"""What a file is: its kind, format, architecture, ranks, alphas and contents, from its header."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..adapters.formats import (
    MAGNITUDES,
    Module,
    Modules,
    apart_or_whole,
    commonest,
    component,
    foreign_method,
    inner_size,
    kind_of,
    modules,
    peft_scales,
    read_alpha,
    recognise,
    special,
    title_of,
)
from ..adapters.model import recognised_file
from ..elements import Element
from ..errors import FormatError
from ..files import QuantisedSource
from ..models.architectures import (
    Architecture,
    Parameter,
    architecture_named,
    encoder_title,
    own_parameters,
)
from ..models.architectures import detect as detect_architecture
from ..models.architectures import naming as naming_of
from ..source import TensorSource

_COMPONENTS = {"unet": "diffusion model", "te": "text encoder", "vae": "VAE", "other": "other"}
# Vectors of new words: beside an adapter under the word's name, or alone in a file.
_BUNDLED = re.compile(r"bundle_emb\.(.+)\.(string_to_param\..+|emb_params|clip_[lgh]|t5xxl)")
_ALONE = re.compile(r"(string_to_param\..+|emb_params|clip_[lgh]|t5xxl|<.+>|.*prompt_embeddings)")
# Metadata value by which cloneofsimo's trainer marks the vector of a word.
_EMBED_FLAG = "<embed>"
# Models by the width of what an embedding file gives the text encoder; two encoders are SDXL's.
_BY_WIDTH = {768: "sd1", 1024: "sd2"}


@dataclass(frozen=True, slots=True)
class Part:
    """One component of a file: the number of tensors it has there, and of values in them."""

    tensors: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Info:
    """What a file is.

    Attributes:
        name: The file, as the source calls it.
        kind: For people: LoRA adapter, DoRA adapter, checkpoint, diffusion model, VAE, ControlNet,
            embedding, upscaler, …, unknown.
        format: Of an adapter: kohya, comfy, peft, diffusers or control-lora; None for anything else.
        spelling: The program whose names the file has, if it was read under others; None if it was
            read under its own.
        architecture: Title of the model family; None where nothing tells, or several are possible.
        possible: Titles of those that are possible, the likeliest first, where it is in doubt.
        encoder: Of a file of one text encoder: which it is, if that is known; None for anything else.
        naming: Of a diffusion model: native or diffusers; None for anything else.
        components: Tensors and values of each component.
        targets: Number of adapted weights by kind: linear, conv 1x1, conv 3x3, conv3d, LoHa, ….
        ranks: Number of LoRA layers by rank.
        alphas: Number of LoRA layers by alpha, as text; ``absent`` where there is none, with the scale that a
            PEFT configuration gives instead, if it is not 1.
        embeddings: Shapes of the vectors of new words, by word or by key.
        dtypes: Number of tensors by dtype; of those that are stored with scales, by the name of that.
        storage: Of a model with weights that are stored with scales: number of weights, of two axes or
            more, by the way in which they are stored; empty for any other.
        bits: Of such a model: all bits of the file's tensors, scales and what describes them included, over
            the numbers that they stand for.
        bytes: Size of the tensors, without the header.
        metadata: The file's string map.
    """

    name: str
    kind: str
    format: str | None
    spelling: str | None
    architecture: str | None
    possible: tuple[str, ...]
    encoder: str | None
    naming: str | None
    components: Mapping[str, Part]
    targets: Mapping[str, int]
    ranks: Mapping[int, int]
    alphas: Mapping[str, int]
    embeddings: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, int]
    storage: Mapping[str, int]
    bits: float | None
    bytes: int
    metadata: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as dicts, strings and numbers: what JSON can hold."""
        return asdict(self)


def describe(source: TensorSource, spelling: str | None = None) -> Info:
    """Return what a file is. Only the header is read, and the alphas of an adapter.

    Args:
        source: The file.
        spelling: The program whose names the file has, if the source reads it under others.

    Raises:
        LayerShapeError: An alpha is not one number.
    """
    keys = source.keys()
    grouped = modules(keys)
    other, method = recognise(grouped), foreign_method(grouped)
    adapter = grouped.is_adapter and (other is None or grouped.is_control)
    apart = apart_or_whole(source) if adapter else source
    found = modules(apart.keys()).modules if adapter else {}
    named = {} if adapter or other or method else own_parameters(source)
    embeddings = _embeddings(source, grouped)
    possible: tuple[str, ...] = ()
    encoder = encoder_title(
        (one.name for one in named.values()), source.metadata.get("general.architecture")
    )
    if adapter:
        recognition = recognised_file(apart, found)
        architecture = recognition.certain
        possible = recognition.titles if architecture is None else ()
        kind = _adapter_kind(apart, found) + (f" with {method[0]}" if method else "")
        kind = other.title if other else kind  # a Control-LoRA's, of which the pairs are a part
        began = special(source.metadata)
        kind += f" ({began})" if began else ""
    elif other or method:
        architecture = _embedded(embeddings) if other else None
        kind = other.title if other else f"adapter: {method[0]}" if method else ""
    else:
        architecture = detect_architecture(named)
        kind = _model_kind(named, architecture)
    parts = dict.fromkeys(keys, "unet" if grouped.is_control else "other")
    for name, module in grouped.modules.items() if adapter else ():
        parts.update(dict.fromkeys(module.keys.values(), component(name)))
    if named and kind != "unknown":
        parts = {one.key: one.component for one in named.values()}
    alike = Counter((parts.get(key, ""), source.element(key), source.shape(key)) for key in keys)
    scaled = _scaled(source, named.values())
    matrices = [key for key in keys if len(source.shape(key)) >= 2] if scaled else []
    lora = {name: one for name, one in found.items() if _is_lora(apart, one)}
    scales = _scales(source, lora)
    return Info(
        name=source.name,
        kind=kind,
        format=commonest(grouped) if adapter else None,
        spelling=spelling,
        architecture=architecture.title if architecture is not None else None,
        possible=possible,
        encoder=encoder,
        naming=naming_of(named) if named and "unet" in parts.values() else None,
        components=_components(alike),
        targets=_sorted(_target(apart, one) for one in found.values()),
        ranks=_sorted(inner_size(apart, one) for one in lora.values()),
        alphas={}  # in a Control-LoRA there are none
        if grouped.is_control
        else _sorted(_alpha(source, one, scales[name]) for name, one in lora.items()),
        embeddings=embeddings,
        dtypes=_sorted(
            (scaled.get(key) or source.element(key).title for key in keys)
            if scaled
            else (element.title for _, element, _ in alike.elements())
        ),
        storage=_sorted(source.storage(key) for key in matrices),
        bits=_bits(source) if scaled else None,
        bytes=sum(map(source.stored_size, keys))
        if scaled
        else sum(n * math.prod(shape) * one.bits // 8 for (_, one, shape), n in alike.items()),
        metadata=dict(source.metadata),
    )


def _scaled(source: TensorSource, named: Iterable[Parameter]) -> dict[str, str]:
    """How weights are stored that are not stored as what they are, by key."""
    stored = ((one.key, source.storage(one.key)) for one in named)
    return {key: name for key, name in stored if name != source.element(key).storage}


def _bits(source: TensorSource) -> float | None:
    file = source.original if isinstance(source, QuantisedSource) else source
    numbers = sum(math.prod(source.shape(key)) for key in source.keys())  # noqa: SIM118
    return 8 * sum(map(file.stored_size, file.keys())) / numbers if numbers else None


def _embeddings(source: TensorSource, grouped: Modules) -> dict[str, tuple[int, ...]]:
    """The vectors of new words; in a file of nothing else, by key."""
    found: dict[str, tuple[int, ...]] = {}
    for key in grouped.extras:
        bundled = _BUNDLED.fullmatch(key)
        alone = not grouped.modules and _ALONE.fullmatch(key)
        if bundled is not None:
            encoder = bundled[2] if bundled[2].startswith(("clip_", "t5")) else ""
            found[f"{bundled[1]} {encoder}".rstrip()] = source.shape(key)
        elif alone or source.metadata.get(key) == _EMBED_FLAG:
            found[key] = source.shape(key)
    return found


def _embedded(embeddings: Mapping[str, tuple[int, ...]]) -> Architecture | None:
    """The model that an embedding file is for."""
    if {"clip_l", "clip_g"} <= embeddings.keys():
        return architecture_named("sdxl")
    widths = {shape[-1] for shape in embeddings.values() if shape}
    name = _BY_WIDTH.get(min(widths)) if len(widths) == 1 else None
    return None if name is None else architecture_named(name)


def _adapter_kind(source: TensorSource, found: Mapping[str, Module]) -> str:
    kinds = {kind_of(source, module) for module in found.values()}
    # Differences of norms and biases accompany factors without making the file another kind.
    thin = kinds - {"full", "set"}
    if not thin:
        return f"adapter of {title_of('set' if 'set' in kinds else 'full')}s"
    kind = min(thin) if len(thin) == 1 else "mixed"
    dora = any(role in module.keys for module in found.values() for role in MAGNITUDES)
    if kind == "lora" and dora:
        return "DoRA adapter"
    return f"{title_of(kind)} adapter{' with DoRA' if dora else ''}"


def _model_kind(named: Mapping[str, Parameter], architecture: Architecture | None) -> str:
    if architecture is None and all(
        f"diffusion_model.{one.key}" == one.name for one in named.values()
    ):
        return "unknown"  # bare names that no table has may be those of any network
    parts = {one.component for one in named.values()} - {"other"}
    if not parts:
        return "unknown"
    return "checkpoint" if len(parts) > 1 else _COMPONENTS[min(parts)]


def _components(alike: Mapping[tuple[str, Element, tuple[int, ...]], int]) -> dict[str, Part]:
    """Tensors and values by component, from the counts of tensors by component, dtype and shape."""
    tensors, values = Counter[str](), Counter[str]()
    for (part, _, shape), count in alike.items():
        tensors[part] += count
        values[part] += count * math.prod(shape)
    return {
        title: Part(tensors[part], values[part])
        for part, title in _COMPONENTS.items()
        if part in tensors
    }


def _target(source: TensorSource, module: Module) -> str:
    if not _is_lora(source, module):
        return "incomplete" if module.kind == "lora" else title_of(kind_of(source, module))
    if module.is_table:
        return "embedding"
    shape = source.shape(module.keys.get("mid", module.keys["down"]))
    kernel = "x".join(map(str, shape[2:]))
    return f"conv{'' if len(shape) == 4 else f'{len(shape) - 2}d'} {kernel}" if kernel else "linear"


def _is_lora(source: TensorSource, module: Module) -> bool:
    down = module.keys.get("down")
    return module.kind == "lora" and down is not None and len(source.shape(down)) >= 2


def _scales(source: TensorSource, found: Collection[str]) -> dict[str, float]:
    """What the file's configuration gives layers without an alpha."""
    try:
        return peft_scales(source.metadata, found)
    except FormatError:  # a pattern that is not read: what the file is can still be said
        return dict.fromkeys(found, 1.0)


def _alpha(source: TensorSource, module: Module, scale: float) -> str:
    if "alpha" not in module.keys:
        return "absent" if scale == 1 else f"absent, scale {scale:g}"
    return f"{read_alpha(source, module.keys['alpha']):g}"


def _sorted(values: Iterable[Any]) -> dict[Any, int]:
    counts = Counter(values)
    return {value: counts[value] for value in sorted(counts)}
