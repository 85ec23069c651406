"""Verification: how far a LoRA file, as it lies on the disk, is from the true change."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.checkpoint import check_checkpoint
from ..adapters.formats import Module, decode, read_kind, saved_parameters
from ..adapters.layers import Convention, Layer, LoraLayer, fits
from ..adapters.matching.own_names import own_names
from ..adapters.matching.seats import Seat, bias_seat, check_apart, seats
from ..adapters.metadata.provenance import originals
from ..adapters.model import names_for
from ..adapters.outline import HeaderOnlySource
from ..errors import ArgumentError, MismatchError, TargetMismatchError, WeightShapeError
from ..linalg import residual_
from ..linalg.noise import Reading, rounding_profile
from ..linalg.ranks.rules import RankRule
from ..linalg.ranks.standing import standing
from ..models.architectures import Parameter, parameters
from ..models.differences import Sides, change_norm, delta_norm, measured
from ..models.modules import aligned
from ..models.pairing import Pair, is_candidate, nearest, pair
from ..operations.control.bake import as_pair, is_control_lora
from ..operations.extract.layer import NO_FACTORS, UNCHANGED
from ..operations.extract.plan import USUAL_MOST
from ..operations.extract.rounding import rounding_left
from ..report import LayerReport, Report, Skip
from ..run.devices import Placement
from ..run.job import Job, Work
from ..run.stream import stream
from ..run.workers import Progress
from ..source import TensorSource

MISSING = "not in the LoRA"


def verify(
    base: TensorSource,
    tuned: TensorSource,
    lora: TensorSource,
    *,
    strength: float = 1.0,
    convention: Convention = "paper",
    allow_other: bool = False,
    workers: int = 2,
    progress: Progress | None = None,
) -> Report:
    """Return the true error of every layer of an adapter, recomputed from the three files alone.

    What the adapter records of itself and of its checkpoints is compared with the files.

    Args:
        base: The checkpoint that the adapter is applied to.
        tuned: The checkpoint that it is to reach.
        lora: The adapter, of any naming that the base's targets can be found under; or the Control-LoRA of
            the ControlNet that is then given as `tuned`, all three as files.
        strength: The user's factor.
        convention: How to read kinds on which programs differ; see docs/kinds.md.
        allow_other: Go on where base or tuned are other files than the adapter records: a note.
        workers: Layers side by side.
        progress: Called after each parameter.

    Returns:
        A report, with the estimated error against the true change too where a side is stored in 8 bits or
        fewer. Its layers are those of the adapter, and what PEFT saved whole beside
        them; changed weights that it does not hold are skips, with the size of what is lost.

    Raises:
        ArgumentError: The strength is not finite.
        FormatError: The adapter's data is not what its hash says, or a file changes meanwhile.
        MismatchError: Base and tuned do not differ, or are not those that the adapter records.
        TargetMismatchError: A layer of the adapter changes nothing that the checkpoints have, or two
            change the same rows.
        WeightShapeError: A layer does not have its weight's shape.
        UnsupportedLayerError: A layer is of a kind that is not read yet.
    """
    started = time.perf_counter()
    if not math.isfinite(strength):
        raise ArgumentError(f"strength {strength}: give a finite number, such as 0.8 or -1")
    sides = as_pair(base, tuned, lora) if is_control_lora(lora) else (base, tuned, lora)
    with originals(base, tuned, lora, allow_other=allow_other) as notes:
        report = _measured(*sides, strength, convention, workers, progress)
        told = notes()
    return replace(report, notes=(*report.notes, *told), seconds=time.perf_counter() - started)


def _measured(
    base: TensorSource,
    tuned: TensorSource,
    lora: TensorSource,
    strength: float,
    convention: Convention,
    workers: int,
    progress: Progress | None,
) -> Report:
    """The report; whether these are the files that the adapter records is not asked here."""
    vae = ("vae",) if any(key.startswith("vae.") for key in lora.keys()) else ()  # noqa: SIM118
    for source in (base, tuned):
        check_checkpoint(source)
    adapter = decode(lora)
    named = _named(adapter, base, tuned)
    pairing = pair(base, tuned, usual=("unet", "te", *vae), allow_partial=True, named=named)
    pairs = (*pairing.candidates, *pairing.rest)
    targets = {one.target: one for one in named(tuned).values()}
    held = _with_saved(adapter, lora)
    outline = decode(HeaderOnlySource(lora))
    places = seats(
        held.layers,
        targets,
        lambda: names_for(outline, pairing.architecture, list(targets)),
    )
    check_apart(places, lora.name)
    members: dict[str, list[tuple[str, Seat]]] = {}
    of_bias: dict[str, list[tuple[str, Seat]]] = {}
    for module, seat in places.items():
        members.setdefault(seat.parameter.target, []).append((module, seat))
        own = outline.layers.get(module)
        bias = bias_seat(seat, targets) if own is not None and own.bias else None
        if bias is not None:
            of_bias.setdefault(bias.parameter.target, []).append((module, bias))
    for name, old, new in pairing.reshaped:
        if any(one in adapter.layers for one, _ in members.get(name.removesuffix(".weight"), ())):
            raise WeightShapeError(
                f"`{name}` is {old} in {base.name} and {new} in {tuned.name}: its layer has no "
                "true change to compare with; give the pair that the LoRA was made from",
                target=name,
            )
    _check_targets(
        adapter, places, {both.target for both in pairs}, lora.name, base.name, tuned.name
    )
    measuring = _Measuring(Sides(base, tuned), held.layers, members, of_bias, strength, convention)
    jobs = [Job(both.target, both, math.prod(both.shape), alike=both.target) for both in pairs]
    placement = Placement(torch.device("cpu"), workers)
    found = list(stream(Work(jobs, partial(_compute, measuring)), placement, progress=progress))
    layers = [one for one in found if isinstance(one, LayerReport)]
    skips = [one for one in found if isinstance(one, Skip)]
    if not any(one.norm for one in (*layers, *skips)):
        raise MismatchError(
            f"no layer differs between {base.name} and {tuned.name}: there is no change to compare "
            f"{lora.name} with; give the tuned checkpoint second"
        )
    return Report(tuple(layers), tuple(skips), pairing.absent)


def _named(
    adapter: Adapter, base: TensorSource, tuned: TensorSource
) -> Callable[[TensorSource], Mapping[str, Parameter]]:
    """The names by which the checkpoints are paired: those of the loaded model, where the adapter has these."""
    theirs = own_names(adapter.layers, tuned, parameters(tuned))
    ours = theirs and own_names(adapter.layers, base, parameters(base))
    if theirs is None or ours is None:
        return parameters
    named = {id(base): aligned(ours, theirs), id(tuned): theirs.parameters}
    return lambda source: named[id(source)]


def _with_saved(adapter: Adapter, lora: TensorSource) -> Adapter:
    """The adapter with the parameters that PEFT saved whole beside its layers, which replace the model's."""
    saved = {
        name: module
        for name, module in saved_parameters(adapter.extras).items()
        if name not in adapter.layers
    }

    layers = _WithSaved(adapter.layers, lora, saved)
    return replace(adapter, layers=layers) if saved else adapter


@dataclass(frozen=True, slots=True, eq=False)
class _WithSaved(Mapping[str, Layer]):
    """Layers, and parameters that PEFT saved whole beside them, read when they are asked for."""

    layers: Mapping[str, Layer]
    lora: TensorSource
    saved: Mapping[str, Module]

    def __getitem__(self, target: str) -> Layer:
        if target in self.saved:
            return read_kind(self.lora, target, self.saved[target])
        return self.layers[target]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.layers, *self.saved]))

    def __len__(self) -> int:
        return len(self.layers) + len(self.saved)


@dataclass(frozen=True, slots=True, eq=False)
class _Measuring:
    """What is measured, and against what.

    Attributes:
        sides: The checkpoints.
        layers: Of the adapter, by module.
        members: By target, the modules that change it and where.
        of_bias: The same of biases that a layer of the weight changes.
        strength: The user's factor.
        convention: Whose.
    """

    sides: Sides
    layers: Mapping[str, Layer]
    members: Mapping[str, Sequence[tuple[str, Seat]]]
    of_bias: Mapping[str, Sequence[tuple[str, Seat]]]
    strength: float
    convention: Convention


def _compute(
    measuring: _Measuring, pairs: Sequence[Pair], _: Placement
) -> list[LayerReport | Skip]:
    return [_found(measuring, both) for both in pairs]


def _found(known: _Measuring, both: Pair) -> LayerReport | Skip:
    changed = [(known.layers[one], at) for one, at in known.members.get(both.target, ())]
    beside = [(known.layers[one].bias, at) for one, at in known.of_bias.get(both.target, ())]
    changed += [(bias, at) for bias, at in beside if bias is not None]
    if changed:
        return _measure(known.sides, changed, both, known.strength, known.convention)
    norm = change_norm(known.sides, both)
    lost = MISSING if is_candidate(both.base) else NO_FACTORS
    return Skip(both.target, both.component, both.kind, lost if norm else UNCHANGED, norm)


def _measure(
    sides: Sides,
    changed: Sequence[tuple[Layer, Seat]],
    both: Pair,
    strength: float,
    convention: Convention,
) -> LayerReport:
    base, tuned = sides.read(both)
    delta, norm = measured(sides, both, base, tuned)
    reading = _reading(sides, both, base, tuned, delta)
    (layer, seat), *others = changed
    if isinstance(layer, LoraLayer) and layer.is_pair and not others and seat.is_all:
        up, down = layer.up.flatten(1).float(), layer.down.flatten(1).float()
        _check_shape(both, (up.shape[0], down.shape[1]), both.matrix)
        residual = float(residual_(delta.flatten(1), up * (layer.scale * strength), down))
    else:
        for one, at in changed:
            own = at.taken(base)
            if not fits(one.shape, own.shape):
                _check_shape(both, one.shape, tuple(own.shape))
            delta.sub_(at.spread(one.change(own, strength, delta.dtype, convention)))
        residual = delta_norm(delta)
    rank = sum(one.rank for one, _ in changed)
    about = (both.target, both.component, both.kind, both.shape)
    rounding = reading and rounding_left(reading[0], delta.flatten(1), reading[1])
    return LayerReport(*about, rank, norm, residual, rounding=rounding)


def _reading(
    sides: Sides, both: Pair, base: Tensor, tuned: Tensor, delta: Tensor
) -> tuple[Reading, Tensor] | None:
    """What a difference says of the true change, and the rest of it; where storage is so coarse that it matters."""
    if not is_candidate(both.base) or sides.coarse(both) is None or not bool(delta.any()):
        return None
    profile = rounding_profile(base, tuned, sides.grids(both))
    reading = standing(delta.flatten(1), profile, RankRule("noise", most=USUAL_MOST))
    rest = delta.flatten(1).clone()
    if reading.best is not None:
        rest.addmm_(*reading.best.factors(len(reading.best.s)), alpha=-1)
    return reading, rest


def _check_shape(both: Pair, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise WeightShapeError(
            f"layer `{both.target}` changes a weight of shape {found}, the checkpoint's is "
            f"{wanted}; the LoRA is for another model",
            target=both.target,
        )


def _check_targets(
    adapter: Adapter,
    found: Mapping[str, Seat],
    targets: Collection[str],
    lora: str,
    base: str,
    tuned: str,
) -> None:
    lost = [
        module
        for module in adapter.layers
        if module not in found or found[module].parameter.target not in targets
    ]
    if not lost:
        return
    listed = "; ".join(f"`{name}`, nearest: {nearest(name, targets)}" for name in lost[:3])
    raise TargetMismatchError(
        f"{len(lost)} of {len(adapter.layers)} layers of {lora} are not in both {base} and "
        f"{tuned}: {listed}; "
        "give the checkpoints that the LoRA was made for"
    )
