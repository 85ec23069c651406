"""A model under diffusers' names, read as the native one: renamed, joined, with its rows in order.

The tables of `architectures` say which rows of which native weight each of diffusers' tensors is.
A model is read natively as a whole, or it keeps its names: where a part of a fused weight is not
there, or where no table knows the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from .architectures.architecture import UNET
from .architectures.autoencoder import DIFFUSERS_VAE, POINTWISE, vae_renames
from .architectures.catalogue import detect
from .architectures.renames import Packing, Renames, renames
from .parameter import Parameter, Piece

_FOREIGN = "transformer."
_VAE = "vae."
_NOTHING = renames(())


@dataclass(frozen=True, slots=True)
class _Model:
    """A part of the pipeline that diffusers has under names of its own.

    Attributes:
        root: What stands before its names, and what before the native ones.
        modules: The table of its modules.
        others: That of its other parameters, by whole names.
        parameters: By diffusers' names, without the root.
    """

    root: tuple[str, str]
    modules: Renames
    others: Renames
    parameters: Mapping[str, Parameter]


def read_natively(found: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Return the parameters of a checkpoint by native names, in their order.

    Args:
        found: By the names that the file's own keys lead to, each of one key.
    """
    native = _split(found)
    for model in _models(native):
        made = _made(model)
        kept = {name for name in native if not name.startswith(model.root[0])}
        if made is None or any(one is not None and one.name in kept for one in made.values()):
            if model.root[0] == _FOREIGN:
                native = dict(found)
            continue
        whole = (made.get(name, one) for name, one in native.items())
        native = {one.name: one for one in whole if one is not None}
    return native


def _split(found: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Cut what diffusers alone has fused into rows of their native names, behind its own root."""
    inside = {name: one for name, one in found.items() if name.startswith(_FOREIGN)}
    architecture = detect(inside)
    fused = renames(() if architecture is None else architecture.fused)
    result: dict[str, Parameter] = {}
    for name, one in found.items():
        module, _, leaf = name.removeprefix(_FOREIGN).rpartition(".")
        parts = fused.foreign_parts(module) if name in inside else ()
        if not parts or one.shape[0] % len(parts):
            result[name] = one
            continue
        high = one.shape[0] // len(parts)
        for index, (native, _) in enumerate(parts):
            part = f"{_FOREIGN}{native}.{leaf}"
            rows = (index * high, (index + 1) * high)
            result[part] = replace(one, name=part, shape=(high, *one.shape[1:]), rows=rows)
    return result


def _models(found: Mapping[str, Parameter]) -> Iterator[_Model]:
    inside = {name: one for name, one in found.items() if name.startswith(_FOREIGN)}
    architecture = detect(inside)
    if architecture is not None and not architecture.foreign_only:
        tables = renames(architecture.packings), renames(architecture.parameters)
        yield _Model((_FOREIGN, UNET), *tables, _without(_FOREIGN, inside))
    vae = _without(_VAE, found)
    if DIFFUSERS_VAE in vae:
        yield _Model((_VAE, _VAE), vae_renames(vae), _NOTHING, vae)


def _without(root: str, found: Mapping[str, Parameter]) -> dict[str, Parameter]:
    return {name[len(root) :]: one for name, one in found.items() if name.startswith(root)}


def _made(model: _Model) -> dict[str, Parameter | None] | None:
    """The native parameters by the canonical name of their first piece; None for the other pieces.

    None at all where they cannot be made.
    """
    made: dict[str, Parameter | None] = {}
    for name, own in model.parameters.items():
        if own.name in made:
            continue
        ways = [way for way in _ways(name, model) if name in way.foreign]
        if not ways:
            continue  # the native model may not have it either
        whole_ways = (way for way in ways if all(part in model.parameters for part in way.foreign))
        way = next(whole_ways, None)
        if way is None:
            return None
        members = [model.parameters[part] for part in way.foreign]
        if len({one.shape[1:] for one in members}) > 1:
            return None
        whole = _whole(model.root[1] + way.native, members, way)
        made |= dict.fromkeys((one.name for one in members), None)
        made[own.name] = whole
    names = [one.name for one in made.values() if one is not None]
    return made if len(names) == len(set(names)) else None


def _ways(name: str, model: _Model) -> Iterator[Packing]:
    """What a parameter may be rows of, by whole names."""
    yield from model.others.packed(name)
    module, _, leaf = name.rpartition(".")
    for packing in model.modules.packed(module):
        swapped = packing.swapped and _has_halves(module, model)
        yield replace(packing.leaf(leaf), swapped=swapped)


def _has_halves(module: str, model: _Model) -> bool:
    """Whether a modulation is of shift and scale alone: those of more parts are not swapped."""
    weight = model.parameters.get(f"{module}.weight")
    return weight is not None and len(weight.shape) == 2 and weight.shape[0] == 2 * weight.shape[1]


def _whole(name: str, members: Sequence[Parameter], way: Packing) -> Parameter:
    first = members[0]
    pointwise = name.removeprefix(_VAE) in POINTWISE and len(first.shape) == 2
    if len(members) == 1 and not (way.swapped or way.flat or pointwise):
        return replace(first, name=name)
    edges = list(accumulate((one.shape[0] for one in members), initial=0))
    shape = (edges[-1], *first.shape[1:])
    if pointwise:
        shape = (*shape, 1, 1)
    if way.flat:
        shape = (math.prod(shape),)
        edges = [0, *shape]
    pieces = (
        Piece(one, rows, way.swapped) for one, rows in zip(members, pairwise(edges), strict=True)
    )
    return Parameter(name, first.key, shape, pieces=tuple(pieces))
