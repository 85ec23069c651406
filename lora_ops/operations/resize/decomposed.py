"""The layers of an adapter with their decompositions, side by side: batches on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from ...adapters.adapter import Adapter
from ...adapters.edited import described, finite
from ...adapters.layers import KroneckerProduct, Layer, MadeLayer, innermost
from ...errors import UnsupportedLayerError
from ...linalg import FactoredSvd, KronSvd, factored_svd, frobenius, thinned
from ...run.devices import Placement, upload
from ...run.workers import ordered_map

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Decomposed:
    """A layer with factors.

    Attributes:
        target: Its name.
        layer: As it was read.
        svd: Of its change.
    """

    target: str
    layer: Layer
    svd: FactoredSvd | KronSvd


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A full difference.

    Attributes:
        target: Its name.
        layer: As it was read.
    """

    target: str
    layer: Layer


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A layer whose change is multiplied out, to be cut to a rank.

    Attributes:
        target: Its name.
        layer: As it was read.
        matrix: (out, in * kernel), float32, on the device.
        total: Its squared Frobenius norm, float64.
    """

    target: str
    layer: Layer
    matrix: Tensor
    total: Tensor


Known: TypeAlias = Decomposed | Dense | Whole


@dataclass(frozen=True, slots=True)
class _Item:
    """A layer's name and, where layers are stacked, the shapes of what is."""

    target: str
    form: tuple[tuple[int, ...], ...] = ()

    @property
    def need(self) -> int:
        """Bytes on the device: the factors in float32 and float64, and the new ones."""
        return 32 * sum(math.prod(shape) for shape in self.form) or 1


def map_decomposed(
    adapter: Adapter, function: Callable[[Known], Result], placement: Placement
) -> Iterator[Result]:
    """Yield `function` of each layer with its decomposition.

    Args:
        adapter: Read layer by layer; twice where layers are stacked.
        function: Called in a job of its own, several at a time.
        placement: Where to compute. With memory of its own, layers of one form are stacked, and
            come in the order of the first of each stack.

    Raises:
        UnsupportedLayerError: A layer is made from the base weight.
        NonFiniteError: NaN or infinity in a factor.
        ArgumentError: The memory does not hold a layer.
    """

    def job(batch: Sequence[_Item]) -> list[Result]:
        with placement.scope():
            return [function(known) for known in _decompose(adapter, batch, placement)]

    for results in ordered_map(job, _batches(adapter, placement), placement.workers):
        yield from results


def _batches(adapter: Adapter, placement: Placement) -> list[list[_Item]]:
    if placement.memory is None:
        return [[_Item(target)] for target in adapter.layers]
    items = [_Item(target, _form(layer)) for target, layer in adapter.layers.items()]
    return placement.batches(items, alike=lambda item: item.form, need=lambda item: item.need)


def _form(layer: Layer) -> tuple[tuple[int, ...], ...]:
    """The shapes of the factors that are stacked; none for a layer that is not."""
    plain = innermost(layer)
    if plain.is_full or layer.needs_base or _kron(plain) is not None:
        return ()
    if isinstance(plain, MadeLayer) and plain.is_dense:
        return ((layer.shape[0], math.prod(layer.shape[1:])),)
    rank = plain.inner_rank
    return (layer.shape[0], rank), (rank, math.prod(layer.shape[1:]))


def _decompose(adapter: Adapter, batch: Sequence[_Item], placement: Placement) -> Iterator[Known]:
    thin: dict[str, Layer] = {}
    ups: list[Tensor] = []
    downs: list[Tensor] = []
    for target in (item.target for item in batch):
        layer = adapter.layers[target]
        if innermost(layer).is_full and not layer.needs_base:
            yield Whole(target, layer)
            continue
        _check_own(target, layer)
        plain = innermost(layer)
        product = _kron(plain)
        if product is not None:
            finite(product.kron().norm(), target, product)
            yield Decomposed(target, layer, product.svd())
            continue
        if isinstance(plain, MadeLayer) and plain.is_dense:
            matrix = upload(plain.delta().flatten(1), placement)
            yield Dense(target, layer, matrix, frobenius(matrix).square())
            continue
        up, down = layer.factors()
        finite(up.norm() * down.norm(), target, layer)
        thin[target] = layer
        ups.append(upload(up, placement))
        downs.append(upload(down, placement))
    if thin:
        stack = factored_svd(*thinned(torch.stack(ups), torch.stack(downs)))
        for index, (target, layer) in enumerate(thin.items()):
            yield Decomposed(target, layer, stack[index])


def _kron(plain: Layer) -> KroneckerProduct | None:
    """A LoKr, also on its way to a LoRA, whose two matrices can be decomposed apart."""
    product = plain.kronecker()
    return product if product is not None and product.is_small else None


def _check_own(target: str, layer: Layer) -> None:
    if layer.needs_base:
        raise UnsupportedLayerError(
            f"layer `{target}` {described(layer)}: what it changes depends on the base weight, so "
            "it has no singular values of its own to choose from; give the checkpoint that it was "
            "trained on as --base, or bake it into its checkpoint",
            target=target,
        )
