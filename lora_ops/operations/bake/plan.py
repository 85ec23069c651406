"""The plan of a bake: which layers of which adapters change which tensor, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import torch

from ...adapters.base import check_fit
from ...adapters.checkpoint import check_checkpoint
from ...adapters.formats import (
    BIAS,
    Modules,
    bias_of,
    configuration_notes,
    decode,
    detect,
    experts_apart,
    modules,
    saved_parameters,
    settings_of,
)
from ...adapters.layers import Convention
from ...adapters.matching.own_names import with_own_names
from ...adapters.matching.seats import bias_seat, found_seats
from ...adapters.model import names_for
from ...adapters.outline import HeaderOnlySource
from ...adapters.strengths.ingredient import Ingredient
from ...elements import Element, asked
from ...errors import ArgumentError, MismatchError, UnknownFormatError
from ...models.architectures import Parameter, parameters
from ...models.architectures import detect as detect_architecture
from ...report import counted
from ...source import TensorSource
from ..reasons import of_one_weight
from ..weights.change import Change
from ..weights.gguf_file_plan import GgufPlan
from ..weights.rounding import seed_of
from ..weights.shares import Share, check_kind
from ..weights.storing_plan import Wanted
from ..weights.tiles import Planned


@dataclass(frozen=True, slots=True, eq=False)
class BakePlan:
    """What a bake will do, known from headers alone.

    Attributes:
        checkpoint: What is changed.
        ingredients: What it is changed by.
        sign: 1 to bake, -1 to unbake; the shares' strengths have it already.
        element: What numbers were asked for; None: each tensor as it is stored.
        changes: By key of the checkpoint, the changes of the parameters that lie there.
        tensors: What becomes of each tensor, by key, in the checkpoint's order.
        lost: Layers without a parameter in the checkpoint, where that was allowed.
        idle: Layers of strength 0.
        notes: What is worth a sentence.
        dora: Whose convention, of kinds that programs read differently; see docs/kinds.md.
        wanted: What was asked of how weights are stored.
        gguf: How it lies in a GGUF file, where it is written as one.
        outside: Layers whose parameters such a file does not hold.
    """

    checkpoint: TensorSource
    ingredients: tuple[Ingredient, ...]
    sign: int
    element: Element | None
    changes: Mapping[str, tuple[Change, ...]]
    tensors: Mapping[str, Planned]
    lost: tuple[Share, ...]
    idle: tuple[Share, ...]
    notes: tuple[str, ...]
    dora: Convention = "paper"
    wanted: Wanted = field(default_factory=Wanted)
    gguf: GgufPlan | None = None
    outside: tuple[Share, ...] = ()

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that was asked for, as torch has it."""
        return self.element.dtype if self.element else None

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Of every tensor of the result, by key; of what is stored with scales, the codes'."""
        return {key: one.element.dtype for key, one in self.tensors.items()}

    @property
    def operation(self) -> str:
        """What it is called: bake or unbake."""
        return "bake" if self.sign > 0 else "unbake"


def plan_bake(
    checkpoint: TensorSource,
    ingredients: Sequence[Ingredient],
    *,
    dtype: torch.dtype | Element | None = None,
    allow_partial: bool = False,
    sign: int = 1,
    dora: Convention = "paper",
    rounding: str = "nearest",
    seed: int = 0,
) -> BakePlan:
    """Find every layer's parameter and check that they fit, from headers alone.

    Args:
        checkpoint: What is to be changed.
        ingredients: The adapters, of any naming that the checkpoint's targets can be found under.
        dtype: Of the result's floating point numbers; None: each as it is stored, bfloat16 for what is
            stored with scales. What belongs to no model (`other.`, such as a noise schedule) always stays as it is stored.
        allow_partial: Leave out layers that the checkpoint has no parameter for.
        sign: 1 to bake, -1 to unbake.
        dora: Whose convention, of DoRA and other kinds that programs read differently; see
            docs/kinds.md.
        rounding: `nearest`, or `stochastic`: what changes is rounded up or down by chance, where it is not
            float32, so that small changes stay on average.
        seed: Of that chance.

    Raises:
        ArgumentError: There is nothing to bake, or a strength or the dtype is none.
        MismatchError: The checkpoint is an adapter, or an adapter is none.
        TargetMismatchError: Layers of an adapter are not in the checkpoint; always where none is.
        WeightShapeError: A layer does not have its parameter's shape.
        UnsupportedLayerError: A layer is of a kind that is not read, or that cannot be unbaked.
        FormatError: A parameter that is to change is not stored as floating point numbers, or with
            scales.
    """
    element = asked(dtype)
    if element is not None and not element.is_floating_point:
        raise ArgumentError(
            f"torch.{element.title} holds no weights; choose a floating point dtype"
        )
    check_checkpoint(checkpoint, "give the checkpoint first, or use `add()` to join adapters")
    known = parameters(checkpoint)
    found: dict[Parameter, list[Share]] = {}
    lost: list[Share] = []
    idle: list[Share] = []
    for ingredient in ingredients:
        for share in adapter_shares(ingredient, sign, known, checkpoint, allow_partial):
            if share.seat is None:
                lost.append(share)
            elif share.strength:
                for seat in share.seat.pieces or (share.seat,):
                    own = seat.parameter if seat.piece is None else seat.piece.parameter
                    found.setdefault(own, []).append(replace(share, seat=seat))
            else:
                idle.append(share)
    if not found:
        reason = "every strength is 0" if idle else "no adapter is given"
        raise ArgumentError(f"nothing to bake: {reason}; give a LoRA with a strength other than 0")
    changes: dict[str, tuple[Change, ...]] = {}
    for parameter, shares in found.items():
        change = Change(parameter, tuple(shares), dora)
        changes[parameter.key] = (*changes.get(parameter.key, ()), change)
    belongs = {key for one in known.values() if one.component != "other" for key in one.keys}
    elements = {key: checkpoint.result_element(key) for key in checkpoint.keys()}  # noqa: SIM118
    if element is not None:
        elements |= {key: element for key in belongs if elements[key].is_floating_point}
    tensors: dict[str, Planned] = {}
    chance = seed_of(rounding, seed)
    for key, of in elements.items():
        steps = changes.get(key, ())
        tensors[key] = Planned(key, checkpoint, key, of, steps, chance if steps else None)
    return BakePlan(
        checkpoint=checkpoint,
        ingredients=tuple(ingredients),
        sign=sign,
        element=element,
        changes=changes,
        tensors=tensors,
        lost=tuple(lost),
        idle=tuple(idle),
        notes=(*_notes(ingredients), *_side_by_side(changes)),
        dora=dora,
        wanted=Wanted(seed=chance),
    )


def _grouped(adapter: TensorSource) -> Modules:
    keys = adapter.keys()
    grouped = modules(keys)
    if any(one.kind == "rows" for one in saved_parameters(grouped.extras).values()):
        return grouped  # vectors of tokens may be all that was trained
    try:
        detect(keys, adapter.name)
    except UnknownFormatError as error:
        raise MismatchError(
            f"{error}; give one checkpoint, first, and then the adapters for it"
        ) from None
    return grouped


def _notes(ingredients: Sequence[Ingredient]) -> Iterator[str]:
    sources = {one.source.name: one.source for one in ingredients}
    for name, count in Counter(one.source.name for one in ingredients).items():
        if count > 1:
            yield f"{name} is given {count} times: its strengths add up"
        for note in configuration_notes(sources[name].metadata):
            yield f"{name}: {note}"
        extras = modules(experts_apart(sources[name]).keys()).extras
        saved = {key for one in saved_parameters(extras).values() for key in one.keys.values()}
        extras = [key for key in extras if key not in saved]
        if extras:
            yield f"{counted(len(extras), 'tensor')} of {name} of no layer, the first `{extras[0]}`"


def _side_by_side(changes: Mapping[str, Sequence[Change]]) -> Iterator[str]:
    shared = [
        change.parameter.target
        for found in changes.values()
        for change in found
        if any(
            (one.needs_base or other.needs_base) and _overlap(one, other)
            for one, other in combinations(change.shares, 2)
        )
    ]
    yield from of_one_weight(shared)


def _overlap(one: Share, other: Share) -> bool:
    """Whether two layers of a weight change some rows of it both."""
    rows = [share.seat.rows for share in (one, other) if share.seat is not None and share.seat.rows]
    return len(rows) < 2 or (rows[0][0] < rows[1][1] and rows[1][0] < rows[0][1])


def adapter_shares(
    ingredient: Ingredient,
    sign: int,
    known: Mapping[str, Parameter],
    checkpoint: TensorSource,
    allow_partial: bool,
) -> Iterator[Share]:
    """The layers of an adapter, checked, each where it lies."""
    source = experts_apart(ingredient.source)
    grouped = _grouped(source)
    saved = saved_parameters(grouped.extras)
    names = list(dict.fromkeys([*grouped.modules, *saved]))
    strengths = ingredient.strengths(names)
    targets = with_own_names(names, checkpoint, known)
    seat_of = found_seats(
        names,
        targets,
        lambda: names_for(
            decode(HeaderOnlySource(source)), detect_architecture(known), list(targets)
        ),
        adapter=source.name,
        checkpoint=checkpoint.name,
        allow_partial=allow_partial,
    )
    # A weight that is saved may have a layer of the same name, which is then added to it.
    for found in (grouped.modules, saved):
        settings = settings_of(source, found)
        for name, module in found.items():
            seat = seat_of.get(name)
            strength = sign * strengths[name]
            share = Share(source, name, module, strength, settings.get(name), seat=seat)
            layer = check_kind(share, sign)
            if seat is not None:
                check_fit(layer, name, source.name, seat.own, checkpoint)
            yield replace(share, needs_base=layer.needs_base)
            bias, at = bias_of(layer, module), bias_seat(seat, targets) if seat else None
            if bias is not None and at is not None:
                beside = Share(source, name + BIAS, bias, strength, needs_base=True, seat=at)
                check_fit(check_kind(beside), beside.name, source.name, at.own, checkpoint)
                yield beside
