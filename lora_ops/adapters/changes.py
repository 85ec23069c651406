"""Any kind as plain LoRA: what each layer changes, made exact, for `resize` to cut to a rank.

A LoHa or a GLoRA is the product of two factors that can be written down; a change that has none
smaller than itself is multiplied out. A LoKr stays one: its SVD is made of those of its two matrices.
Whatever is made from the weight is made from the checkpoint's, one weight at a time, when the layer
is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..elements import ELEMENTS, Element, shaped
from ..errors import ArgumentError, UnsupportedLayerError
from ..linalg import frobenius
from ..report import counted
from .adapter import Adapter
from .base import BaseWeights
from .edited import described, finite
from .formats import format_named, module_keys
from .layers import (
    BasedDoraLayer,
    Convention,
    DoraLayer,
    FullLayer,
    Layer,
    LoraLayer,
    MadeLayer,
    ReshapedLayer,
    innermost,
    low_rank,
    unpadded,
)
from .outline import outline


def as_changes(
    adapter: Adapter,
    layers: Mapping[str, Layer],
    base: BaseWeights | None,
    convention: Convention = "paper",
    *,
    everything: bool = True,
    cut: bool = True,
) -> Adapter:
    """Return the adapter with the changes of its layers in place of other kinds, made when read.

    Plain LoRA, and full differences of vectors, which have no factors, stay what they are.

    Args:
        adapter: Of any kinds.
        layers: Its layers; their data is not looked at.
        base: The weights they are made from; None: none of them may need one.
        convention: How to read kinds on which programs differ; see docs/kinds.md.
        everything: Whether to convert also LoHa, LoKr and all else whose factors make the change
            without the weight, and DoRA over these; else DoRA only gets its weight.
        cut: Whether the changes will be cut to a rank; else one that is dense is refused.

    Raises:
        UnsupportedLayerError: A layer needs the base weights, and they are not there.
        ArgumentError: A change is dense, and will not be cut.
    """
    _check_base(layers, base)
    plans = {
        target: _plan(target, layer, base)
        for target, layer in layers.items()
        if (not _is_plain(layer) if everything else layer.needs_base and not _has_own_inner(layer))
    }
    if not cut:
        _check_thin(plans)

    keys = {target: _lora_keys(adapter, target, plan.shape) for target, plan in plans.items()}
    changes = _Changes(adapter.layers, plans, base, convention)
    return replace(adapter, layers=changes, keys={**adapter.keys, **keys})


def changes_at(
    adapter: Adapter,
    layers: Mapping[str, Layer],
    base: BaseWeights,
    strengths: Mapping[str, float],
    convention: Convention = "paper",
) -> Adapter:
    """Return the adapter with what layers make of the weight in place of those that need one, made when read.

    The change is that at the layer's strength, over that strength: times it, it is what `bake` adds, also of
    kinds that are not proportional to it. All else stays what it is.

    Args:
        adapter: Of any kinds.
        layers: Its layers; their data is not looked at.
        base: The weights they are made from.
        strengths: By layer; one that is not named, or 0, counts as 1.
        convention: How to read kinds on which programs differ; see docs/kinds.md.
    """
    plans = {
        target: replace(_plan(target, layer, base), strength=strengths.get(target, 1.0) or 1.0)
        for target, layer in layers.items()
        if layer.needs_base
    }
    keys = {target: _lora_keys(adapter, target, plan.shape) for target, plan in plans.items()}
    changes = _Changes(adapter.layers, plans, base, convention)
    return replace(adapter, layers=changes, keys={**adapter.keys, **keys})


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What is known of a layer that is to be made."""

    kind: str
    shape: tuple[int, ...]
    rank: int
    element: Element
    is_dense: bool
    is_kron: bool = False
    is_large: bool = False
    reshape_weight: Tensor | None = None
    strength: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Changes(Mapping[str, Layer]):
    """The changes of layers in place of those, made each time they are asked for.

    Attributes:
        layers: What they are made of.
        plans: Of those that change.
        base: The weights they are made from.
        convention: Whose.
        is_outline: Whether what is made has no data.
    """

    layers: Mapping[str, Layer]
    plans: Mapping[str, _Plan]
    base: BaseWeights | None
    convention: Convention
    is_outline: bool = False

    def __getitem__(self, target: str) -> Layer:
        plan = self.plans.get(target)
        if plan is None:
            return _with_weight(target, self.layers[target], self.base, self.convention)
        if len(plan.shape) < 2:
            return self._make(target)
        made = _made(plan, lambda: self._make(target))
        return made if plan.reshape_weight is None else ReshapedLayer(made, plan.reshape_weight)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def outline(self) -> Mapping[str, Layer]:
        """The same without data."""
        return replace(self, layers=outline(self.layers), is_outline=True)

    def _make(self, target: str) -> Layer:
        layer, plan, base = self.layers[target], self.plans[target], self.base
        if self.is_outline:
            return _unmade(layer, plan)
        weight = base.weight(target) if base is not None and layer.needs_base else None
        return _change(target, layer, plan, weight, self.convention)


def _unmade(layer: Layer, plan: _Plan) -> Layer:
    """A change without its data."""
    if plan.is_kron:
        return unpadded(layer)
    if plan.is_dense:
        return FullLayer(shaped(plan.shape, ELEMENTS["F32"]))
    out, into = _sides(plan.shape)
    up, down = (shaped(size, ELEMENTS["F32"]) for size in ((out, plan.rank), (plan.rank, into)))
    return low_rank(up, down, plan.shape)


def _plan(target: str, layer: Layer, base: BaseWeights | None) -> _Plan:
    shape = _shape(target, layer, base)
    size = layer.reshape_weight if isinstance(layer, ReshapedLayer) else None
    large = _is_large(layer, shape)
    product = unpadded(layer).kronecker()
    kron = product is not None and product.is_small
    rank, dense = unpadded(layer).inner_rank, large and not kron
    return _Plan(layer.title, shape, rank, layer.element, dense, kron, large, size)


def _made(plan: _Plan, make: Callable[[], Layer]) -> MadeLayer:
    kind, shape, rank, element = plan.kind, plan.shape, plan.rank, plan.element
    return MadeLayer(kind, shape, rank, element, plan.is_dense, make, plan.is_kron)


def _with_weight(
    target: str, layer: Layer, base: BaseWeights | None, convention: Convention
) -> Layer:
    """A layer that keeps its kind; DoRA gets its base weight."""
    if base is None or not isinstance(layer, DoraLayer):
        return layer
    return BasedDoraLayer(
        layer.inner,
        layer.magnitude,
        layer.role,
        weight=lambda: base.weight(target),
        convention=convention,
    )


def _change(
    target: str, layer: Layer, plan: _Plan, weight: Tensor | None, convention: Convention
) -> Layer:
    """The change of a layer, float32: multiplied out, or as the LoRA or LoKr that it is exactly.

    Raises:
        NonFiniteError: A tensor of the layer holds NaN or infinity.
    """
    if isinstance(layer, ReshapedLayer):
        weight = None if weight is None else layer.padded(weight)
        layer = layer.inner
    if plan.is_kron:
        return layer
    if not plan.is_dense:
        up, down = layer.factors() if weight is None else layer.factors_of(weight)
        finite(up.norm() * down.norm(), target, layer)
        return low_rank(up, down, plan.shape)
    if weight is None:
        change = layer.delta()
    else:  # in float64: a small change is the difference of two large weights
        change = layer.change(weight, plan.strength, torch.float64, convention)
        change = change.div_(plan.strength).float()
    finite(frobenius(change.reshape(1, -1)), target, layer)
    return FullLayer(change.reshape(plan.shape))


def _check_base(layers: Mapping[str, Layer], base: BaseWeights | None) -> None:
    needing = [(name, layer) for name, layer in layers.items() if layer.needs_base]
    if needing and base is None:
        target, layer = needing[0]
        raise UnsupportedLayerError(
            f"{counted(len(needing), 'layer')} of {len(layers)} can only be told from the base "
            f"weights: the first, `{target}`, {described(layer)}; give the checkpoint that it was "
            "trained on as `base=`",
            target=target,
        )


def _check_thin(plans: Mapping[str, _Plan]) -> None:
    dense = [target for target, plan in plans.items() if plan.is_large and len(plan.shape) > 1]
    if dense:
        raise ArgumentError(
            f"{counted(len(dense), 'layer')}, the first `{dense[0]}` ({plans[dense[0]].kind}), would "
            "take more room as an exact LoRA than the whole weight does; say how much to keep, such "
            'as `rule=32` or `rule="error=0.1"`',
            target=dense[0],
        )


def _is_plain(layer: Layer) -> bool:
    """Whether a layer can stay: up and down alone, or a vector."""
    plain = innermost(layer)
    if layer.needs_base:
        return False
    if isinstance(plain, LoraLayer):
        return plain.is_pair
    return plain.is_full and min(_sides(plain.shape)) == 1


def _has_own_inner(layer: Layer) -> bool:
    """Whether a layer is DoRA over a kind whose factors make the change without the weight."""
    return isinstance(layer, DoraLayer) and not layer.inner.needs_base


def _shape(target: str, layer: Layer, base: BaseWeights | None) -> tuple[int, ...]:
    """Shape of the weight, from the checkpoint if known: a layer may store its kernel flat."""
    shape = base.shape(target) if base is not None else None
    return layer.shape if shape is None or isinstance(layer, ReshapedLayer) else shape


def _is_large(layer: Layer, shape: Sequence[int]) -> bool:
    """Whether factors of the change would be larger than the change; a vector has none."""
    plain = unpadded(layer)
    out, into = _sides(shape)
    return plain.is_made_whole or len(shape) < 2 or plain.inner_rank * (out + into) > out * into


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    """(out, in * kernel)."""
    return (shape[0] if shape else 1, math.prod(shape[1:]))


def _lora_keys(adapter: Adapter, target: str, shape: Sequence[int]) -> dict[str, str]:
    """The keys of a layer as LoRA, or of a vector as a full difference."""
    known = adapter.keys.get(target, {"alpha": f"{target}.alpha"})
    keys = module_keys(format_named(adapter.format), adapter.module(target))
    wanted = ("up", "down", "alpha") if len(shape) > 1 else ("diff", "alpha")
    found = {"alpha": known["alpha"]} | {role: keys[role] for role in wanted if role in keys}
    return found | {role: key for role, key in known.items() if role == "reshape_weight"}
