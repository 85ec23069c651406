"""Whether a program knows the name of a module, by the schemes of its table."""

from __future__ import annotations

import re
from typing import Literal

from ...adapters.formats import BIAS, ModelNames
from ...adapters.naming.names import underscored
from ...models.architectures import ENCODERS, UNET
from .programs import Route, Scheme
from .subject import Subject

State = Literal["loads", "perhaps", "left"]
_WHOLE = ("text_projection", "embeddings.token_embedding", "embeddings.position_embedding")


def known(module: str, route: Route, file: Subject) -> State:
    """Whether a name is one that a program knows for this model."""
    name = module.removesuffix(BIAS)
    architecture = file.architecture
    short = architecture.name if architecture is not None else ""
    found: State = "left"
    for scheme in route.schemes:
        fits = not scheme.of or not short or short in scheme.of
        if fits and name.startswith(scheme.prefix) and all(k in file.keys for k in scheme.needs):
            state = _spelled(scheme, name.removeprefix(scheme.prefix), file.names)
            if state == "loads":
                return state
            found = state if state == "perhaps" else found
    return found


def _spelled(scheme: Scheme, inner: str, names: ModelNames) -> State:
    if scheme.flat and "." in inner:
        return "left"
    if scheme.only and not re.fullmatch(scheme.only, inner):
        return "left"
    if scheme.but and re.search(scheme.but, inner):
        return "left"
    if scheme.names == "any":
        return "loads"
    if scheme.names == "encoder":
        return _of_encoder(inner)
    if names.architecture is None:
        return "perhaps"
    if scheme.names == "processor":
        return _with_processor(inner, names)
    table = names.modules
    place = table.find(inner)
    if place is None:
        # A variant of the model may have it; without a prefix nothing says that this is a name.
        variant = scheme.names == "native" and scheme.prefix and not inner.startswith(("_", UNET))
        return "perhaps" if variant else "left"
    if scheme.names == "native":
        own = underscored(place.native) if scheme.flat else place.native
        return "loads" if inner == own else "left"
    return "loads" if _is_foreign(inner, names) else "left"


def _is_foreign(inner: str, names: ModelNames) -> bool:
    """Whether a module has this name in diffusers; it may be the native one as well."""
    parts = names.modules.foreign_parts(inner)
    return not parts or any(underscored(name) == underscored(inner) for name, _ in parts)


def _with_processor(inner: str, names: ModelNames) -> State:
    if ".processor.to_" in inner:
        inner = inner.replace(".processor.to_", ".to_")
        inner += ".0" if inner.endswith(".to_out") else ""
    elif ".to_" in inner:
        return "left"
    known = names.modules.find(inner) is not None and _is_foreign(inner, names)
    return "loads" if known else "left"


def _of_encoder(inner: str) -> State:
    name = inner.partition("transformer.")[2]
    return "loads" if ENCODERS.find(name) is not None or name.endswith(_WHOLE) else "perhaps"
