"""The layers of an adapter with their decompositions, side by side: batches on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from .adapter import Adapter
from .devices import Placement, upload
from .edit import finite
from .layers import Layer, LoraLayer
from .linalg import FactoredSvd, factored_svd, thinned
from .parallel import ordered_map

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Decomposed:
    """One layer.

    Attributes:
        target: Its name.
        layer: As it was read.
        svd: Of its change; None for a layer without factors.
    """

    target: str
    layer: Layer
    svd: FactoredSvd | None


@dataclass(frozen=True, slots=True)
class _Item:
    """A layer's name and, where layers are stacked, the shapes of its tensors."""

    target: str
    form: tuple[tuple[int, ...], ...] = ()

    @property
    def need(self) -> int:
        """Bytes on the device: the factors in float32 and float64, and the new ones."""
        return 32 * sum(math.prod(shape) for shape in self.form)


def map_decomposed(
    adapter: Adapter, function: Callable[[Decomposed], Result], placement: Placement
) -> Iterator[Result]:
    """Yield `function` of each layer with its decomposition.

    Args:
        adapter: Read layer by layer; twice where layers are stacked.
        function: Called in a job of its own, several at a time.
        placement: Where to compute. With memory of its own, layers of one form are stacked, and
            come in the order of the first of each stack.
    """

    def job(batch: Sequence[_Item]) -> list[Result]:
        with placement.scope():
            return [function(known) for known in _decompose(adapter, batch, placement)]

    for results in ordered_map(job, _batches(adapter, placement), placement.workers):
        yield from results


def _batches(adapter: Adapter, placement: Placement) -> list[list[_Item]]:
    if placement.memory is None:
        return [[_Item(target)] for target in adapter.layers]
    items = [
        _Item(target, tuple(tuple(tensor.shape) for tensor in layer.tensors().values()))
        for target, layer in adapter.layers.items()
    ]
    return placement.batches(items, alike=lambda item: item.form, need=lambda item: item.need)


def _decompose(
    adapter: Adapter, batch: Sequence[_Item], placement: Placement
) -> Iterator[Decomposed]:
    layers = {item.target: adapter.layers[item.target] for item in batch}
    ups, downs, thin = [], [], []
    for target, layer in layers.items():
        if isinstance(layer, LoraLayer):
            up, down = layer.factors()
            finite(up.norm() * down.norm(), target, layer)
            ups.append(upload(up, placement))
            downs.append(upload(down, placement))
            thin.append(target)
    svds: dict[str, FactoredSvd] = {}
    if thin:
        stack = factored_svd(*thinned(torch.stack(ups), torch.stack(downs)))
        svds = {target: stack[index] for index, target in enumerate(thin)}
    for target, layer in layers.items():
        yield Decomposed(target, layer, svds.get(target))
