"""The plan of a bake: which layers of which adapters change which tensor, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from .architectures import Parameter, parameters
from .bake_shares import Change, Share, check_fit, check_kind
from .errors import ArgumentError, MismatchError, TargetMismatchError, UnknownFormatError
from .formats import Modules, component, configured_scales, detect, flattened, modules, resolve
from .ingredients import Ingredient
from .layers import Convention
from .pairs import COMPONENT_TITLES, nearest, refuse_adapter
from .report import counted
from .source import TensorSource


@dataclass(frozen=True, slots=True, eq=False)
class BakePlan:
    """What a bake will do, known from headers alone.

    Attributes:
        checkpoint: What is changed.
        ingredients: What it is changed by.
        sign: 1 to bake, -1 to unbake; the shares' strengths have it already.
        dtype: What was asked for; None: each tensor as it is stored.
        changes: By key of the checkpoint, the changes of the parameters that lie there.
        dtypes: Of every tensor of the result, by key, in the checkpoint's order.
        lost: Layers without a parameter in the checkpoint, where that was allowed.
        idle: Layers of strength 0.
        notes: What is worth a sentence.
        dora: Whose convention, of kinds that programs read differently; see docs/kinds.md.
    """

    checkpoint: TensorSource
    ingredients: tuple[Ingredient, ...]
    sign: int
    dtype: torch.dtype | None
    changes: Mapping[str, tuple[Change, ...]]
    dtypes: Mapping[str, torch.dtype]
    lost: tuple[Share, ...]
    idle: tuple[Share, ...]
    notes: tuple[str, ...]
    dora: Convention = "paper"

    @property
    def operation(self) -> str:
        """What it is called: bake or unbake."""
        return "bake" if self.sign > 0 else "unbake"


def plan_bake(
    checkpoint: TensorSource,
    ingredients: Sequence[Ingredient],
    *,
    dtype: torch.dtype | None = None,
    allow_partial: bool = False,
    sign: int = 1,
    dora: Convention = "paper",
) -> BakePlan:
    """Find every layer's parameter and check that they fit, from headers alone.

    Args:
        checkpoint: What is to be changed.
        ingredients: The adapters, of any naming that the checkpoint's targets can be found under.
        dtype: Of the result's floating point numbers; None: each as it is stored. What belongs to
            no model (`other.`, such as a noise schedule) always stays as it is stored.
        allow_partial: Leave out layers that the checkpoint has no parameter for.
        sign: 1 to bake, -1 to unbake.
        dora: Whose convention, of DoRA and other kinds that programs read differently; see
            docs/kinds.md.

    Raises:
        ArgumentError: There is nothing to bake, or a strength or the dtype is none.
        MismatchError: The checkpoint is an adapter, or an adapter is none.
        TargetMismatchError: Layers of an adapter are not in the checkpoint; always where none is.
        WeightShapeError: A layer does not have its parameter's shape.
        UnsupportedLayerError: A layer is of a kind that is not read, or that cannot be unbaked.
        FormatError: A parameter that is to change is not stored as floating point numbers.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ArgumentError(f"{dtype} holds no weights; choose a floating point dtype")
    _refuse_adapter(checkpoint)
    known = parameters(checkpoint)
    targets = {parameter.target: parameter for parameter in known.values()}
    found: dict[str, list[Share]] = {}
    lost: list[Share] = []
    idle: list[Share] = []
    for ingredient in ingredients:
        for share, target in _shares(ingredient, sign, targets, checkpoint, allow_partial):
            if target is None:
                lost.append(share)
            elif share.strength:
                found.setdefault(target, []).append(share)
            else:
                idle.append(share)
    if not found:
        reason = "every strength is 0" if idle else "no adapter is given"
        raise ArgumentError(f"nothing to bake: {reason}; give a LoRA with a strength other than 0")
    changes: dict[str, tuple[Change, ...]] = {}
    for target, shares in found.items():
        change = Change(targets[target], tuple(shares))
        key = change.parameter.key
        changes[key] = (*changes.get(key, ()), change)
    belongs = {one.key for one in known.values() if one.component != "other"}
    dtypes = {key: checkpoint.dtype(key) for key in checkpoint.keys()}  # noqa: SIM118
    if dtype is not None:
        dtypes |= {key: dtype for key in belongs if dtypes[key].is_floating_point}
    return BakePlan(
        checkpoint=checkpoint,
        ingredients=tuple(ingredients),
        sign=sign,
        dtype=dtype,
        changes=changes,
        dtypes=dtypes,
        lost=tuple(lost),
        idle=tuple(idle),
        notes=(*_notes(ingredients), *_side_by_side(changes)),
        dora=dora,
    )


def _refuse_adapter(checkpoint: TensorSource) -> None:
    if modules(checkpoint.keys()).is_adapter:
        raise MismatchError(
            f"{checkpoint.name} is an adapter (LoRA or the like), not a checkpoint; give the "
            "checkpoint first, or use `lorakit add` to join adapters"
        )
    refuse_adapter(checkpoint)


def _grouped(adapter: TensorSource) -> Modules:
    keys = adapter.keys()
    try:
        detect(keys, adapter.name)
    except UnknownFormatError as error:
        raise MismatchError(
            f"{error}; give one checkpoint, first, and then the adapters for it"
        ) from None
    return modules(keys)


def _notes(ingredients: Sequence[Ingredient]) -> Iterator[str]:
    sources = {one.source.name: one.source for one in ingredients}
    for name, count in Counter(one.source.name for one in ingredients).items():
        if count > 1:
            yield f"{name} is given {count} times: its strengths add up"
        extras = modules(sources[name].keys()).extras
        if extras:
            yield f"{counted(len(extras), 'tensor')} of {name} of no layer, the first `{extras[0]}`"


def _side_by_side(changes: Mapping[str, Sequence[Change]]) -> Iterator[str]:
    shared = [
        change.parameter.target
        for found in changes.values()
        for change in found
        if len(change.shares) > 1 and any(share.needs_base for share in change.shares)
    ]
    if shared:
        yield (
            f"{counted(len(shared), 'weight')}, the first `{shared[0]}`, of several layers: each is "
            "made from the weight of the checkpoint, and their changes are added; ComfyUI applies "
            "one after another"
        )


def _shares(
    ingredient: Ingredient,
    sign: int,
    targets: Mapping[str, Parameter],
    checkpoint: TensorSource,
    allow_partial: bool,
) -> Iterator[tuple[Share, str | None]]:
    """The layers of an adapter, checked, each with its target; None where there is none."""
    grouped = _grouped(ingredient.source)
    strengths = ingredient.strengths(grouped.modules)
    target_of = found_targets(
        grouped.modules,
        targets,
        adapter=ingredient.source.name,
        checkpoint=checkpoint.name,
        allow_partial=allow_partial,
    )
    scales = configured_scales(ingredient.source, grouped.modules)
    for name, module in grouped.modules.items():
        share = Share(ingredient.source, name, module, sign * strengths[name], scales.get(name))
        target = target_of.get(name)
        layer = check_kind(share, sign)
        share = replace(share, needs_base=layer.needs_base)
        if target is not None:
            check_fit(layer, name, ingredient.source.name, targets[target], checkpoint)
        yield share, target


def found_targets(
    names: Collection[str],
    targets: Mapping[str, Parameter],
    *,
    adapter: str,
    checkpoint: str,
    allow_partial: bool | None = None,
) -> dict[str, str]:
    """Return the target of each module that has a parameter in a checkpoint.

    Args:
        names: Of the modules, as they stand in the adapter.
        targets: The checkpoint's parameters by canonical target.
        adapter: What messages call the adapter.
        checkpoint: What they call the checkpoint.
        allow_partial: Whether some may be missing; None: they may not, and nobody can ask for it.

    Raises:
        TargetMismatchError: Two modules mean one target, or one is not there.
    """
    found = {name: target for name, target in resolve(names, targets).items() if target in targets}
    for target, count in Counter(found.values()).items():
        if count > 1:
            listed = ", ".join(f"`{name}`" for name, other in found.items() if other == target)
            raise TargetMismatchError(
                f"{listed} of {adapter} all mean `{target}`; keep one of them",
                target=target,
            )
    lost = [name for name in names if name not in found]
    if not lost or (allow_partial and found):
        return found
    spelled = {flattened(target): target for target in targets}
    lines = [f"`{name}`, nearest: {_nearest(name, spelled)}" for name in lost[:3]]
    lacking = [
        f"it has no {COMPONENT_TITLES[part]}"
        for part in {component(name): None for name in lost}
        if not any(parameter.component == part for parameter in targets.values())
    ]
    offered = found and allow_partial is not None
    way_out = "; --allow-partial goes on with the others" if offered else ""
    raise TargetMismatchError(
        f"{len(lost)} of {counted(len(names), 'layer')} of {adapter} are not in "
        f"{checkpoint}: {'; '.join([*lines, *lacking])}; give the checkpoint that the LoRA was "
        f"made for{way_out}"
    )


def _nearest(name: str, spelled: Mapping[str, str]) -> str:
    """The target that is spelled most like a module, in backticks; names differ in their dots."""
    found = nearest(flattened(name), spelled).strip("`")
    return f"`{spelled[found]}`" if found in spelled else "none"
