"""Which model an adapter is for, told by its names and shapes: one answer for every command."""

from __future__ import annotations

from collections.abc import Mapping

from .adapter import Adapter
from .architectures import ARCHITECTURES, Architecture, Recognition, recognise_layers
from .formats import BIAS, PROCESSORS, Module, Told, component, flattened, told, told_of
from .source import TensorSource


def models_of(adapter: Adapter) -> tuple[Architecture, ...]:
    """The architectures that an adapter can be for, the likeliest first; see `recognised`."""
    return recognised(adapter).possible


def recognised(adapter: Adapter) -> Recognition:
    """What an adapter can be for, by its names and shapes, and by its metadata where these doubt."""
    return _recognised(told_of(adapter.layers), adapter.metadata)


def recognised_file(source: TensorSource, modules: Mapping[str, Module]) -> Recognition:
    """What an adapter file can be for, as `recognised`; only its header is read.

    Args:
        source: The file.
        modules: Of its keys, by name.
    """
    found = {name: told(source, name, module) for name, module in modules.items()}
    return _recognised(found, source.metadata)


def _recognised(layers: Mapping[str, Told], metadata: Mapping[str, str]) -> Recognition:
    # Differences of norms and tables stand beside factors; no list of modules has them.
    chosen = {name: shape for name, (has_factors, shape) in layers.items() if has_factors}
    chosen = chosen or {
        name: shape
        for name, (_, shape) in layers.items()
        if not name.endswith(BIAS) and len(shape or ()) > 1
    }
    names = {name: _flat(name) for name in chosen}
    found = recognise_layers({names[name]: shape for name, shape in chosen.items()})
    strays = set(found.strays)
    encoders = all(component(name) == "te" for name in chosen)
    commoner = (one for one in ARCHITECTURES if not one.variant_of)
    known = found.possible or (tuple(commoner) if encoders else ())
    possible = tuple(one for one in known if _is_told(one, metadata)) or found.possible
    return Recognition(possible, tuple(name for name in chosen if names[name] in strays))


def _is_told(one: Architecture, metadata: Mapping[str, str]) -> bool:
    version = metadata.get("ss_base_model_version")
    spec = metadata.get("modelspec.architecture", "").removesuffix("/lora")
    return (bool(version) and version == one.base_model_version) or (
        bool(spec) and spec == one.modelspec
    )


def _flat(module: str) -> str:
    name = flattened(module)
    for pattern, to in PROCESSORS:
        name = pattern.sub(to, name)
    return name
