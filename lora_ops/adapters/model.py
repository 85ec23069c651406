"""Which model an adapter is for, told by its names and shapes, and the names that this model has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..errors import ArgumentError, UnsupportedLayerError
from ..models.architectures import ARCHITECTURES, UNET, Architecture, Recognition, recognise_layers
from ..report import counted
from ..source import TensorSource
from .adapter import Adapter
from .formats import (
    BIAS,
    PROCESSORS,
    Format,
    ModelNames,
    Module,
    Told,
    component,
    flat_name,
    format_of,
    model_names,
    told,
    told_of,
)

#: What to do where names are those of several models, or of none.
TELL_THE_MODEL = "give the model's checkpoint as `reference=`, or its name as `architecture=`"


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
    spec = metadata.get("modelspec.architecture", "").partition("/")[0]
    return (bool(version) and version == one.base_model_version) or (
        bool(spec) and spec == one.modelspec
    )


def _flat(module: str) -> str:
    name = flat_name(module)
    for pattern, to in PROCESSORS:
        name = pattern.sub(to, name)
    return name


def names_for(
    adapter: Adapter,
    architecture: Architecture | None = None,
    reference: Collection[str] = (),
    format: Format | None = None,
) -> ModelNames:
    """Return the names of the model that an adapter is for.

    A table is used only where all names of the adapter are its. Where several tables have them, it
    must not matter which is used. Otherwise the model counts as unknown, and names stay as they are.

    Args:
        adapter: The adapter; its names and shapes tell the model.
        architecture: The architecture, where it is known; None: told by names and shapes.
        reference: Canonical targets of a checkpoint; of a UNet they also tell the layout.
        format: The format that names will be given in; None: modules are only looked up.

    Raises:
        ArgumentError: Names have to change, and it is in doubt to what.
    """
    if architecture is not None:
        return model_names(architecture, reference)
    unknown = model_names(None, reference)
    found = recognised(adapter)
    keeps = format is not None and all(format_of(module) == format for module in adapter.layers)
    if not found.possible or (found.strays and keeps):
        return unknown
    if found.strays and reference:
        return unknown
    if found.strays:
        title = found.possible[0].title
        raise ArgumentError(
            f"{counted(len(found.strays), 'layer')} of {len(adapter.layers)} are not of {title}, "
            f"whose names the others have; the first is `{found.strays[0]}`: no name is changed "
            f"while it is in doubt; {TELL_THE_MODEL}",
            target=found.strays[0],
        )
    return names_of_any(found.possible, list(adapter.layers), reference, format, keeps=keeps)


def names_of_any(
    possible: Sequence[Architecture],
    modules: Collection[str],
    reference: Collection[str] = (),
    format: Format | None = None,
    *,
    keeps: bool,
) -> ModelNames:
    """Return the names of the first model that modules can be of, if it does not matter which it is.

    Args:
        possible: The models that have their names, the likeliest first; one or more.
        modules: All that are to be found, or named.
        reference: Canonical targets of a checkpoint, which tells the model.
        format: The format that names will be given in; None: modules are only looked up.
        keeps: Whether names can stay as they are, as those of an unknown model do; else a doubt is
            an error.

    Raises:
        ArgumentError: A module means different things in two of the models.
    """
    unknown = model_names(None, reference)
    known = [model_names(one, reference) for one in possible]
    if reference:
        return _referred(known, modules, set(reference)) or unknown
    for module in modules:
        meant = [one for names in known if (one := _meaning(names, module, format))]
        if all(one == meant[0] for one in meant):
            continue
        if keeps:
            return unknown
        titles = Recognition(tuple(possible)).titles
        raise ArgumentError(
            f"its names are those of {', '.join(titles[:-1])} and of {titles[-1]}, for which "
            f"`{module}` means different things: no name is changed while it is in doubt; {TELL_THE_MODEL}",
            target=module,
        )
    named = (names for names in known if all(_meaning(names, m, format) for m in modules))
    return next(named, known[0])


def _referred(
    known: Sequence[ModelNames], modules: Collection[str], reference: Collection[str]
) -> ModelNames | None:
    """The first model by whose names all modules are in a checkpoint."""
    for names in known:
        places = [names.place(module.removesuffix(BIAS)) for module in modules]
        if all(
            place is not None and (place.native in reference or not place.native.startswith(UNET))
            for place in places
        ):
            return names
    return None


def _meaning(names: ModelNames, module: str, format: Format | None) -> tuple[object, ...]:
    """Where a module is, and what it is called in a format; () for a model that has no name there."""
    place = names.place(module)
    if place is None or format is None:
        return (place,)
    try:
        return place, names.spelled(format, place.native)
    except UnsupportedLayerError:
        return ()
