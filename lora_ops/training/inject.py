"""Inject, eject, collect: adapters into a live module, out of it, and back into files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..adapters.adapter import Adapter
from ..adapters.formats import COMFY, PEFT, format_of, table_keys
from ..errors import ArgumentError, MismatchError, UnsupportedLayerError
from .adapted import Adapted, adapt, restore
from .make import Fresh, fresh_path, paths_of
from .paths import LoraPath
from .targets import chosen
from .weights import dense_weight, read_layers, turned_classes

if TYPE_CHECKING:
    from ..adapters.matching.seats import Seat
    from ..source import TensorSource

_SVD_OF = "svd_of="
# Where the parameters that were trainable before are kept, until the last adapter has gone.
_FROZEN = "_frozen_by_lorakit"


def inject(
    module: nn.Module,
    targets: str | Sequence[str] | Adapter,
    rank: int = 16,
    alpha: float | None = None,
    *,
    kind: str = "lora",
    dropout: float = 0.0,
    init: str = "normal",
    name: str = "default",
    prefix: str = "",
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Put trainable paths beside linear, convolution and embedding layers; freeze everything else.

    h = W x + (alpha / rank) up down x (Hu et al., 2021). The frozen weights stay the parameters
    that they are, under their names in the state dict; what is trained is whatever parameter of the
    module then has `requires_grad`. Where torch takes a layer's weight without calling the layer
    (`out_proj` of `nn.MultiheadAttention`, the linear layers of `nn.TransformerEncoderLayer`) the
    path is in the weight that it gets; bare parameters, such as `in_proj_weight`, have no path.

    Args:
        module: The model; changed in place, see `eject`.
        targets: A preset (`attention`, `all`), shell patterns for names of submodules (`*.to_q`),
            or an adapter whose layers are to go on being trained, or just to run.
        rank: Directions of each path; at most the smaller side of a weight.
        alpha: The number behind the scale, alpha / rank; None: scale 1.
        kind: `lora`; or `dora`, with a trained magnitude by output channel, of linear and
            convolution layers.
        dropout: Share of the input's numbers that the path does not see in training, 0 to 1.
        init: `normal` (Hu et al.; PEFT's `gaussian`) or `kaiming` (PEFT's default), which change
            nothing at first; `pissa`, which starts from the weight's leading directions and changes
            nothing at first either; `svd_of=FILE`, the best factors of that checkpoint less this
            model. An embedding starts from zero and unit noise under the first two.
        name: The adapter's name: a module carries any number of adapters.
        prefix: What a file's targets have before the module's own names (`diffusion_model.`).
        dtype: Dtype of what is trained; None: that of the adapter that is given; else float32, or
            the weight's where that is wider.
        generator: Source of the random start; None: torch's own, as for any new layer.

    Returns:
        The names of the submodules with paths, in order.

    Raises:
        ArgumentError: No submodule is meant, the name is taken, the rank is too high, or an option
            means nothing.
        TargetMismatchError: The adapter has layers that the module has no submodule for.
        WeightShapeError: A layer of the adapter is for a weight of another shape.
        UnsupportedLayerError: A kind of layer, or of module, that no path can stand for; or dropout
            beside a layer that is never called.
    """
    if not name.isidentifier():
        raise ArgumentError(f"`{name}` is no name for an adapter; use letters, digits and `_`")
    submodules = dict(module.named_modules())
    if isinstance(targets, Adapter):
        made = dict(paths_of(module, targets, prefix, dropout, dtype))
    else:
        own, path = (
            ("normal", init.removeprefix(_SVD_OF)) if init.startswith(_SVD_OF) else (init, "")
        )
        options = Fresh(rank, alpha, kind, dropout, own, dtype, generator)
        wanted = chosen(module, targets)
        differences = _differences(wanted, path, prefix) if path else dict.fromkeys(wanted)
        made = {
            one: fresh_path(one, wanted[one], options, difference)
            for one, difference in differences.items()
        }
    for target in made:
        held = submodules[target]
        if isinstance(held, Adapted) and name in held.adapters:
            raise ArgumentError(
                f"`{target}` has an adapter `{name}` already; eject it first, or give another name"
            )
    read = read_layers(module)
    for target in made:
        _check_place(target, submodules[target], submodules[target] in read, dropout)
    _freeze(module)
    for target, path in made.items():
        layer = submodules[target]
        adapt(layer, is_read=layer in read).adapters[name] = path.train(layer.training)
    return list(made)


def eject(module: nn.Module, name: str | None = None) -> None:
    """Take an adapter out again; with the last of them the module is exactly what it was.

    Args:
        module: As it was given to `inject`.
        name: The adapter's name; None: all of them.

    Raises:
        MismatchError: It has no such adapter.
    """
    for _, layer in adapted_layers(module, name):
        for one, path in layer.paths().items():
            if name in (None, one):
                layer.unmerge([path])
                del layer.adapters[one]
        if not layer.adapters:
            restore(layer)
    if not any(isinstance(one, Adapted) for one in module.modules()):
        for parameter in module.__dict__.pop(_FROZEN, ()):
            parameter.requires_grad_(True)


def collect(module: nn.Module, name: str | None = None, *, prefix: str = "") -> Adapter:
    """Return what was trained as an adapter: the inverse of injecting one.

    Strengths are not in it, for they are the user's, not the adapter's.

    Args:
        module: As it was given to `inject`.
        name: The adapter's name; None: the only one.
        prefix: What the targets get before the module's own names. With `diffusion_model.`, as
            ComfyUI calls a diffusion model's, every format can be written.

    Raises:
        MismatchError: It has no such adapter.
        ArgumentError: It has several, and no name is given.
    """
    layers = list(adapted_layers(module, name))
    names = {one for _, layer in layers for one in layer.adapters}
    if name is None and len(names) > 1:
        raise ArgumentError(
            f"the module has several adapters, {', '.join(sorted(names))}: name one"
        )
    own = name or names.pop()
    found = {prefix + target: layer.paths()[own].layer() for target, layer in layers}
    if format_of(prefix + layers[0][0]) == COMFY:
        return Adapter(found, {}, {}, COMFY.name)
    tables = [prefix + one for one, layer in layers if isinstance(layer, nn.Embedding)]
    keys = {one: {**table_keys(one), "alpha": f"{one}.alpha"} for one in tables}
    return Adapter(found, {}, {}, PEFT.name, keys)


def adapted_layers(module: nn.Module, name: str | None = None) -> Iterator[tuple[str, Adapted]]:
    """Yield the layers that carry an adapter, with their names.

    Args:
        module: The model.
        name: The adapter's name; None: any.

    Raises:
        MismatchError: No layer carries it.
    """
    found = [(one, sub) for one, sub in module.named_modules() if isinstance(sub, Adapted)]
    fitting = [(one, sub) for one, sub in found if name is None or name in sub.adapters]
    if not fitting:
        held = sorted({one for _, sub in found for one in sub.adapters})
        there = f"it has {', '.join(held)}" if held else "inject one first"
        raise MismatchError(f"the module has no adapter{f' `{name}`' if name else ''}; {there}")
    yield from fitting


def _check_place(target: str, layer: nn.Module, is_read: bool, dropout: float) -> None:
    """Refuse a layer beside which no path, or not this one, can run.

    Raises:
        UnsupportedLayerError: Says why.
    """
    groups = getattr(layer, "groups", 1)
    if groups != 1:
        raise UnsupportedLayerError(
            f"`{target}` is a convolution in {groups} groups, which has no low-rank path; leave it "
            "out of the targets",
            target=target,
        )
    if is_read and dropout:
        raise UnsupportedLayerError(
            f"`{target}` is never called, for torch takes its weight alone: there is no input to "
            "drop numbers of; give dropout 0, or leave it out of the targets",
            target=target,
        )


def _freeze(module: nn.Module) -> None:
    """Stop all training but that of paths, and remember what was trained before."""
    paths = {
        id(parameter)
        for one in module.modules()
        if isinstance(one, LoraPath)
        for parameter in one.parameters()
    }
    frozen: list[nn.Parameter] = module.__dict__.setdefault(_FROZEN, [])
    for parameter in module.parameters():
        if parameter.requires_grad and id(parameter) not in paths:
            parameter.requires_grad_(False)
            frozen.append(parameter)


def _differences(wanted: dict[str, nn.Module], path: str, prefix: str) -> dict[str, Tensor]:
    """A checkpoint's weights less those of the submodules, float32.

    Raises:
        MismatchError: It is an adapter, lacks a weight, or has it in another shape.
        QuantisedError: Its numbers are stored with scales.
    """
    from ..adapters.checkpoint import check_checkpoint
    from ..files import open_source
    from ..models.differences import read_parameter

    found: dict[str, Tensor] = {}
    with open_source(path) as source:
        check_checkpoint(source)
        places = _places(wanted, source, prefix)
        for name, module in wanted.items():
            weight = dense_weight(module)
            seat = places.get(name)
            shape = () if seat is None else seat.own.shape
            if seat is None or shape != tuple(weight.shape):
                what = f"is {shape} there" if seat else "is not in it"
                raise MismatchError(
                    f"`{name}` {what}, and {tuple(weight.shape)} here; give the checkpoint of this model",
                    target=name,
                    path=path,
                )
            rows = replace(seat, rows=None).taken(read_parameter(source, seat.own))
            found[name] = rows.to(weight) - weight
    return found


def _places(wanted: dict[str, nn.Module], source: TensorSource, prefix: str) -> dict[str, Seat]:
    """Where a checkpoint has the weights of submodules: by their names, else by another program's."""
    from ..adapters.formats import model_names
    from ..adapters.matching.seats import Seat, seats
    from ..models.architectures import Parameter, detect, own_parameters, parameters

    keys = {one.target: one.key for one in own_parameters(source).values() if one.rows is None}
    keys |= {key.removesuffix(".weight"): key for key in source.keys()}  # noqa: SIM118
    found: dict[str, Seat] = {}
    for name, module in wanted.items():
        key = keys.get(prefix + name, keys.get(name))
        if key is not None:
            is_turned = isinstance(module, turned_classes())
            shape = source.shape(key)[:: -1 if is_turned else 1]
            found[name] = Seat(Parameter(key, key, shape, transposed=is_turned))
    native = parameters(source)
    targets = {one.target: one for one in native.values()}
    lost = {prefix + name: name for name in wanted if name not in found}
    there = seats(lost, targets, lambda: model_names(detect(native), list(targets)))
    return found | {lost[name]: seat for name, seat in there.items()}
